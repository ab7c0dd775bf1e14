"""Measures one LSTM with separate weights for every timestep as users of eight libraries write it (`lstms`).

    pip install -e . matplotlib jax torch flax dm-haiku equinox haliax==1.4.dev453
    python tests/benchmarks/libraries.py             # batch 128, 28 timesteps, 28 inputs, 128 units
    python tests/benchmarks/libraries.py --smoke     # a tiny shape, one round

Each must agree with a NumPy loop to 1e-4 (state, gradients, weights after one update of RMSprop) before it is
timed. Contestants take turns within every round, and for its memory each has a process of its own. One whose
first step takes more than 20 s has no memory measured; at 90 s it is given up. What is not installed is left
out. Prints a table for each number of timesteps; writes libraries.csv to `--out`.
"""

import argparse
import ast
import csv
import pathlib
import random
import sys
from dataclasses import replace
from functools import partial

import numpy as np
from problems import SHAPES, TINY
from speed import Race
from workers import Answers, Worker

LSTMS = pathlib.Path(__file__).parent / "lstms"
# Name of a contestant, to its first comma: its file.
FILES = {
    "flax linen": "flax_linen.py",
    "flax nnx": "flax_nnx.py",
    "haiku": "haiku_stack.py",
    "equinox": "equinox_scan.py",
    "haliax": "haliax_stacked.py",
    "list of torch cells": "torch_cells.py",
    "list of Keras cells": "keras_cells.py",
    "this layer": "here.py",
}
UNIT = "this layer, JAX"
COLUMNS = ("", "lines", "compile, s", "step, ms", f"over {UNIT}", "peak memory, MB")


class Lstms(Race):
    """Training steps of what `contestants/lstms_with_*.py` enter."""

    libraries = ("jax", "tensorflow", "torch")
    modes = ("step",)

    @staticmethod
    def worker(library: str) -> Worker:
        return Worker(library, partial(Answers, f"contestants.lstms_with_{library}"))

    def rows(self) -> list[list[str]]:
        """What `COLUMNS` says, the fastest first."""
        steps = {entry.name: entry.seconds["step"] for entry in self.entries}
        found = []
        for entry in sorted(self.entries, key=lambda e: e.median("step")):
            step = steps[entry.name]
            numbers = (
                f"{max(0.0, entry.first_call - np.median(step)):.1f}",
                f"{1e3 * np.median(step):.2f}",
                f"{np.median(step / steps[UNIT]):.2f}" if UNIT in steps else "",
                f"{entry.memory:.0f}" if entry.memory == entry.memory else "",
            )
            found.append([entry.name, str(lines(LSTMS / FILES[entry.name.split(",")[0]])), *numbers])
        return found

    def table(self) -> None:
        p = self.problem
        print(f"\nBatch {p.batch}, {p.timesteps} timesteps, {p.input_dim} inputs, {p.units} units:\n")
        for row in (COLUMNS, ["---"] * len(COLUMNS), *self.rows()):
            print("|", " | ".join(row), "|", flush=True)


def lines(path: pathlib.Path) -> int:
    """Lines of code: neither blank nor comments nor of a docstring."""
    text = path.read_text()
    strings = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    ]
    left_out = {line for node in strings for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    stripped = ((number, line.strip()) for number, line in enumerate(text.splitlines(), start=1))
    return sum(bool(line) and line[0] != "#" and number not in left_out for number, line in stripped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timesteps", type=int, nargs="+", default=[28])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.2, help="the least that one measurement takes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/libraries"))
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    args = parser.parse_args()
    random.seed(0)
    problems = [replace(SHAPES["L1"], timesteps=timesteps) for timesteps in args.timesteps]
    if args.smoke:
        problems = [replace(TINY, cell="lstm", learning_rate=SHAPES["L1"].learning_rate)]
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, args.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "libraries.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("timesteps", "contestant", *COLUMNS[1:]))
        for problem in problems:
            race = Lstms(problem, "L1")
            race.prepare()
            race.run(rounds, at_least)
            race.close()
            if not race.entries:
                sys.exit("error: nothing to time")
            race.weigh()
            race.table()
            writer.writerows([problem.timesteps, *row] for row in race.rows())


if __name__ == "__main__":
    main()
