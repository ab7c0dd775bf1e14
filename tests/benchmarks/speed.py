"""Times this library against every other way to run an untied (or a tied) recurrence.

    python tests/benchmarks/speed.py                 # all shapes of the simple cell
    python tests/benchmarks/speed.py --shapes L1 G1  # LSTM and GRU
    python tests/benchmarks/speed.py --smoke         # a tiny shape of each cell, to see that it runs

Each library runs in a process of its own; contestants take turns within every round. All must agree with
a NumPy loop to 1e-4 (state, gradients, weights after one update) before they are timed. Libraries that are
not installed are left out. Prints tables; writes speed.csv and speed.png to `--out`.
"""

import argparse
import csv
import pathlib
import random
import sys
from dataclasses import replace

import numpy as np
from cells import CELLS
from drawing import SLOW_FIRST_CALL, draw_speed
from problems import SHAPES, TINY, Problem
from workers import LIBRARIES, TOLERANCE, Worker

MODES = ("forward", "gradients", "step")
LATENCY = ("model_call", "predict_on_batch")  # how users ask for one sample
LONGEST_FIRST_CALL = 90.0  # seconds: beyond, it is given up
KINDS = ("ours", "untied", "tied", "floor")


class Entry:
    """One contestant: where it runs, and what was measured of it."""

    def __init__(self, library: str, name: str, kind: str):
        self.library, self.kind = library, kind
        self.name = f"{name}, {library}" if kind == "floor" else name
        self.key = name
        self.first_call = self.memory = float("nan")
        self.seconds: dict[str, np.ndarray] = {}

    @property
    def counted(self) -> bool:
        return self.first_call <= SLOW_FIRST_CALL

    def median(self, mode: str) -> float:
        return 1e3 * float(np.median(self.seconds[mode])) if mode in self.seconds else float("nan")


class Race:
    """All contestants on one problem."""

    libraries = tuple(LIBRARIES)
    worker = Worker

    def __init__(self, problem: Problem, shape: str):
        self.problem, self.shape = problem, shape
        self.workers: dict[str, Worker] = {}
        self.entries: list[Entry] = []

    def prepare(self) -> None:
        for library in self.libraries:
            self.workers[library] = self.worker(library)
            try:
                names = self.workers[library].ask("enter", self.problem)
            except RuntimeError as error:
                print(f"{library}: left out ({error})")
                continue
            for name, kind in names.items():
                self.enter(Entry(library, name, kind))

    def enter(self, entry: Entry) -> None:
        worker = self.workers[entry.library]
        try:
            errors = [worker.ask("tiny_error", self.problem, entry.key)]
            entry.first_call = worker.ask("make", self.problem, entry.key, limit=LONGEST_FIRST_CALL)
            if entry.counted:
                errors.append(worker.ask("error", self.problem, entry.key))
            if not all(error <= TOLERANCE for error in errors):
                print(f"{entry.name}: not timed, differs from the plain loop by {np.max(errors):.1e}")
                return
        except (RuntimeError, TimeoutError) as error:
            print(f"{entry.name}: not timed ({error})")
            self.replace(entry.library)
            return
        self.entries.append(entry)

    def replace(self, library: str) -> None:
        """A new process for a library whose old one is gone, with what it had made."""
        if self.workers[library].process.is_alive():
            return
        self.workers[library] = self.worker(library)
        self.workers[library].ask("enter", self.problem)
        for entry in self.entries:
            if entry.library == library:
                self.workers[library].ask("make", self.problem, entry.key)

    def run(self, rounds: int, at_least: float) -> None:
        for mode in self.modes:
            running = [e for e in self.entries if e.counted or mode == "step"]
            if mode in LATENCY:
                running = [e for e in running if e.kind in ("ours", "tied") and e.library == "tensorflow"]
            times = np.zeros((rounds, len(running)))
            for row in times:
                order = list(range(len(running)))
                random.shuffle(order)
                for i in order:
                    worker = self.workers[running[i].library]
                    row[i] = worker.ask("seconds", self.problem, running[i].key, mode, at_least)
            for entry, column in zip(running, times.T, strict=True):
                entry.seconds[mode] = column

    def weigh(self) -> None:
        """Peak memory, of each contestant in a process of its own."""
        for entry in self.entries:
            if entry.kind != "floor" and entry.counted:
                worker = self.worker(entry.library)
                worker.ask("enter", self.problem)
                # The library reads its compiler into memory when it is first used.
                worker.ask("tiny_error", self.problem, entry.key)
                entry.memory = worker.ask("peak_memory", self.problem, entry.key)
                worker.close()

    @property
    def modes(self) -> tuple[str, ...]:
        return MODES + LATENCY if self.problem.batch == 1 else MODES

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()

    def best(self, mode: str, kind: str, name: str = "") -> Entry | None:
        found = [
            e for e in self.entries if e.kind == kind and e.counted and mode in e.seconds and name in e.name
        ]
        return min(found, key=lambda e: e.median(mode), default=None)

    def ratio(self, mode: str, name: str, kind: str) -> str:
        """Median over the rounds of our time over the other's, each round's two by themselves."""
        ours, other = self.best(mode, "ours", name), self.best(mode, kind)
        if ours is None or other is None:
            return ""
        return f"{np.median(ours.seconds[mode] / other.seconds[mode]):.2f} ({other.name})"

    def table(self) -> None:
        p = self.problem
        print(
            f"\n{self.shape}: {p.cell} cell, batch {p.batch}, {p.timesteps} timesteps, {p.input_dim} inputs, "
            f"{p.units} units"
        )
        _row("ms a call", *self.modes, "first step, s", "peak memory, MB")
        _row(*["---"] * (len(self.modes) + 3))
        for entry in sorted(self.entries, key=lambda e: (KINDS.index(e.kind), e.median("step"))):
            times = (_number(entry.median(mode), 2) for mode in self.modes)
            _row(entry.name, *times, f"{entry.first_call:.1f}", _number(entry.memory, 0))
        print()
        _row("best over best", *self.modes)
        _row(*["---"] * (len(self.modes) + 1))
        for ours in ("this layer", "this layer, TensorFlow"):
            for kind in KINDS[1:]:
                _row(f"{ours} / {kind}", *(self.ratio(mode, ours, kind) for mode in self.modes))

    def rows(self) -> list[list]:
        return [
            [
                self.shape,
                e.name,
                e.kind,
                *(_number(e.median(mode), 3) for mode in MODES),
                f"{e.first_call:.2f}",
                _number(e.memory, 0),
            ]
            for e in self.entries
        ]


def _number(value: float, digits: int) -> str:
    """Nothing where nothing was measured."""
    return "" if np.isnan(value) else f"{value:.{digits}f}"


def _row(*cells: str) -> None:
    print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    simple = [name for name, problem in SHAPES.items() if problem.cell == "simple"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=simple)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.1, help="the least that one measurement takes")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/speed"))
    parser.add_argument(
        "--memory", nargs="*", choices=SHAPES, default=["S2"], help="shapes to measure the peak memory at"
    )
    parser.add_argument("--smoke", action="store_true", help="a tiny shape of each cell, one round")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    random.seed(0)
    tiny = replace(TINY, learning_rate=SHAPES["S1"].learning_rate)
    problems = {name: SHAPES[name] for name in args.shapes}
    if args.smoke:
        problems = {f"tiny {cell}": replace(tiny, cell=cell) for cell in CELLS}
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, args.seconds)

    races = []
    for shape, problem in problems.items():
        race = Race(problem, shape)
        race.prepare()
        race.run(rounds, at_least)
        race.close()
        if not race.entries:
            sys.exit("error: nothing to time")
        if shape in args.memory:
            race.weigh()
        race.table()
        races.append(race)
        with (args.out / "speed.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                [
                    *("shape", "contestant", "kind", "forward_ms", "gradients_ms", "step_ms"),
                    *("first_s", "memory_mb"),
                ]
            )
            writer.writerows(row for race in races for row in race.rows())
        draw_speed(args.out / "speed.csv", args.out / "speed.png")


if __name__ == "__main__":
    main()
