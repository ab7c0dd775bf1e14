"""Seconds to build layers of many timesteps: the weights of all of them are drawn.

    python tests/benchmarks/building.py [--timesteps 3136] [--units 128] [--smoke]

Each layer is built twice in a process of its own, for memory that is new to a process takes longer.
"""

import argparse
import multiprocessing
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LAYERS = ("UntiedDense", "UntiedSimpleRNN", "UntiedGRU", "UntiedLSTM", "UntiedRNN(SimpleRNNCell)")


def build(name: str, timesteps: int, units: int) -> list[float]:
    """The seconds of two layers."""
    import keras

    import untied_rnn

    times = []
    for _ in range(2):
        if name.startswith("UntiedRNN"):
            layer = untied_rnn.UntiedRNN(keras.layers.SimpleRNNCell(units), timesteps=timesteps)
        else:
            layer = getattr(untied_rnn, name)(units, timesteps=timesteps)
        start = time.perf_counter()
        layer.build((None, timesteps, 1))
        for weight in layer.weights:
            keras.ops.convert_to_numpy(weight)  # waits for it
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timesteps", type=int, default=3136)
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--smoke", action="store_true", help="few timesteps, to see that it runs")
    args = parser.parse_args()
    timesteps = 4 if args.smoke else args.timesteps
    print(f"{timesteps} timesteps, {args.units} units, one input\n")
    print("| | first, s | again, s |\n| --- | --- | --- |")
    context = multiprocessing.get_context("spawn")
    for name in LAYERS:
        with context.Pool(1) as pool:
            first, again = pool.apply(build, (name, timesteps, args.units))
        print(f"| `{name}` | {first:.2f} | {again:.2f} |", flush=True)


if __name__ == "__main__":
    main()
