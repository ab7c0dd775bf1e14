"""What a sharing costs: time and peak memory of a training step, beside the tied and the untied layer.

    python tests/benchmarks/sharing.py                 # S2 S3 S4 L1, as `fit` runs on a CPU, and under XLA
    python tests/benchmarks/sharing.py --smoke         # a tiny shape, one round

On TensorFlow. All sharings of a shape take turns within every round, and for its memory each has a process of
its own. Prints tables; writes sharing.csv to `--out`.
"""

import argparse
import csv
import pathlib
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import SHAPES, TINY, Problem
from workers import Worker, mean_seconds, resident_memory

SHARINGS = ("tied", "untied", "Blocks(7)", "LowRank(1)", "LowRank(4)", "Basis(4)")
# Long enough that a matrix for each timestep would be seen.
LONG = Problem(64, 784, 8, 256)


class Answers:
    """Layers with their sharings, in a process with TensorFlow."""

    def __init__(self) -> None:
        self.steps: dict[str, Callable[[], Any]] = {}

    def make(self, problem: Problem, sharing: str, jit_compile: bool) -> None:
        """A training step, run once."""
        import keras
        import tensorflow as tf

        import untied_rnn
        from untied_rnn.sharing import Basis, Blocks, LowRank

        classes = {
            "simple": untied_rnn.UntiedSimpleRNN,
            "lstm": untied_rnn.UntiedLSTM,
            "gru": untied_rnn.UntiedGRU,
        }
        names = {"Basis": Basis, "Blocks": Blocks, "LowRank": LowRank}
        kind, _, number = sharing.rstrip(")").partition("(")
        layer = classes[problem.cell](
            problem.units,
            timesteps=problem.timesteps,
            sharing=names[kind](int(number)) if number else kind,
        )
        layer.build((problem.batch, problem.timesteps, problem.input_dim))
        optimizer = keras.optimizers.RMSprop(problem.learning_rate)
        optimizer.build(layer.trainable_variables)
        x, y = map(tf.constant, problem.data())

        @tf.function(jit_compile=jit_compile, autograph=False)
        def step() -> tf.Tensor:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((layer(x) - y) ** 2)
            variables = layer.trainable_variables
            optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)
            return loss

        self.steps[sharing] = lambda: step().numpy()
        self.steps[sharing]()

    def seconds(self, sharing: str, at_least: float) -> float:
        self.steps[sharing]()
        return mean_seconds(self.steps[sharing], at_least)

    def peak_memory(self, problem: Problem, sharing: str, jit_compile: bool) -> float:
        """Megabytes at the peak of training, beside the library's. To be asked in a new process."""
        self.make(TINY, "tied", jit_compile)  # the library reads its compiler into memory
        before = resident_memory("VmRSS")
        self.make(problem, sharing, jit_compile)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak so far, of making weights and of compiling, is forgotten
        for _ in range(3):
            self.steps[sharing]()
        return resident_memory("VmHWM") - before


def timed(problem: Problem, jit_compile: bool, rounds: int, at_least: float) -> dict[str, np.ndarray]:
    """Seconds of a training step by sharing, for each round."""
    worker = Worker("tensorflow", Answers)
    for sharing in SHARINGS:
        worker.ask("make", problem, sharing, jit_compile)
    seconds: dict[str, list[float]] = {sharing: [] for sharing in SHARINGS}
    for _ in range(rounds):
        for sharing in random.sample(SHARINGS, len(SHARINGS)):
            seconds[sharing].append(worker.ask("seconds", sharing, at_least))
    worker.close()
    return {sharing: np.array(found) for sharing, found in seconds.items()}


def weighed(problem: Problem, jit_compile: bool) -> dict[str, float]:
    """Megabytes by sharing."""
    found = {}
    for sharing in SHARINGS:
        worker = Worker("tensorflow", Answers)
        found[sharing] = worker.ask("peak_memory", problem, sharing, jit_compile)
        worker.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["S2", "S3", "S4", "L1"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.1, help="the least that one measurement takes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/sharing"))
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    args = parser.parse_args()
    random.seed(0)
    problems = {"tiny": TINY} if args.smoke else {name: SHAPES[name] for name in args.shapes}
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, args.seconds)
    rows = []
    for jit_compile in (False, True):
        compiled = "XLA" if jit_compile else "graph"
        for name, problem in problems.items():
            seconds = timed(problem, jit_compile, rounds, at_least)
            print(f"\n{name}, {compiled}: ms, over tied, over untied")
            for sharing, found in seconds.items():
                over = [float(np.median(found / seconds[other])) for other in ("tied", "untied")]
                print(f"{sharing:12} {1e3 * np.median(found):8.2f} {over[0]:6.2f} {over[1]:6.2f}", flush=True)
                rows.append(
                    [name, compiled, sharing, f"{1e3 * np.median(found):.3f}", *map("{:.3f}".format, over)]
                )
        print(f"\npeak memory, {compiled}: MB")
        for sharing, megabytes in weighed(TINY if args.smoke else LONG, jit_compile).items():
            print(f"{sharing:12} {megabytes:6.0f}", flush=True)
            rows.append(["memory", compiled, sharing, f"{megabytes:.0f}", "", ""])
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "sharing.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["shape", "compiled", "sharing", "ms or MB", "over_tied", "over_untied"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
