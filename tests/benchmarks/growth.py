"""How the time of a training step grows with the timesteps, the units and the batch.

    python tests/benchmarks/growth.py [--sweeps timesteps units batch] [--rounds 5] [--smoke]

Along each sweep all sizes of all contestants take turns within every round, so that a ratio of two sizes is
one of the same minutes. Prints tables; writes growth.csv and growth.png to `--out`.
"""

import argparse
import csv
import pathlib
import random

import numpy as np
from drawing import draw_growth
from problems import TINY, Problem
from workers import Worker

SWEEPS = {
    "timesteps": [Problem(128, n, 1, 128) for n in (28, 112, 784, 3136)],
    "units": [Problem(128, 28, 28, n) for n in (16, 50, 128, 256, 512)],
    "batch": [Problem(n, 28, 28, 50) for n in (1, 8, 32, 128, 512)],
}
# Name: library. Only programs that do not grow with the timesteps.
CONTESTANTS = {
    "this layer, TensorFlow XLA": "tensorflow",
    "this layer, TensorFlow": "tensorflow",
    "this layer, JAX": "jax",
    "jax.lax.scan": "jax",
    "tied SimpleRNN, TensorFlow XLA": "tensorflow",
    "tied SimpleRNN, TensorFlow": "tensorflow",
    "products alone": "numpy, all threads",
}


def measure(problems: list[Problem], rounds: int, at_least: float) -> dict[str, np.ndarray]:
    """Seconds of a step by contestant, `(rounds, problems)`, of the libraries that are installed."""
    workers = {}
    for library in dict.fromkeys(CONTESTANTS.values()):
        worker = Worker(library)
        try:
            worker.ask("enter", TINY)
            workers[library] = worker
        except RuntimeError as error:
            print(f"{library}: left out ({error})")
            worker.close()
    names = [name for name, library in CONTESTANTS.items() if library in workers]
    runs = [(name, i) for name in names for i in range(len(problems))]
    for name, i in runs:
        workers[CONTESTANTS[name]].ask("make", problems[i], name)
    seconds = {name: np.zeros((rounds, len(problems))) for name in names}
    for turn in range(rounds):
        random.shuffle(runs)
        for name, i in runs:
            worker = workers[CONTESTANTS[name]]
            seconds[name][turn, i] = worker.ask("seconds", problems[i], name, "step", at_least)
    for worker in workers.values():
        worker.close()
    return seconds


def table(sweep: str, sizes: list[int], seconds: dict[str, np.ndarray]) -> None:
    print(f"\n| ms a step at {sweep} = | {' | '.join(map(str, sizes))} | last over last but one |")
    print("| --- " * (len(sizes) + 2) + "|")
    for name, times in seconds.items():
        medians = (f"{1e3 * time:.2f}" for time in np.median(times, axis=0))
        print(
            f"| {name} | {' | '.join(medians)} | {np.median(times[:, -1] / times[:, -2]):.2f} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="the least that one measurement takes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/growth"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    sweeps = {name: SWEEPS[name] for name in args.sweeps}
    if args.smoke:
        sweeps = {"timesteps": [Problem(2, 3, 4, 5), Problem(2, 6, 4, 5)]}

    rows = []
    for sweep, problems in sweeps.items():
        sizes = [getattr(problem, sweep) for problem in problems]
        seconds = measure(problems, 1 if args.smoke else args.rounds, 0.0 if args.smoke else args.seconds)
        table(sweep, sizes, seconds)
        for name, turns in seconds.items():
            times = 1e3 * np.median(turns, axis=0)
            rows += [[sweep, size, name, f"{time:.3f}"] for size, time in zip(sizes, times, strict=True)]
    with (args.out / "growth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["sweep", "size", "contestant", "step_ms"], *rows])
    draw_growth(args.out / "growth.csv", args.out / "growth.png")


if __name__ == "__main__":
    main()
