"""Times this library on a GPU, on TensorFlow and JAX, with its peers, in custom loops and in `fit`.

    python tests/benchmarks/gpu.py                   # eight minutes
    python tests/benchmarks/gpu.py --shapes S1 L1 --only "this layer" jax.lax.scan --minutes 3
    python tests/benchmarks/gpu.py --smoke           # a tiny shape, on any machine

XLA's flags reach both libraries. Loops in CUDA graphs:

    XLA_FLAGS="--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_command_buffer_unroll_loops=true" \\
        python tests/benchmarks/gpu.py --shapes S1 L1 --only "this layer"

Each library runs in a separate process, one contestant after another, the most important first. A contestant
may take `--limit` seconds in all, compilation included. If it takes longer, or dies, its process ends and a
new process runs the rest. A shape may take its share of the minutes that are left; the end lists what was
not run.

A time is the median of five short repeats of calls that are waited for: `forward` and `step` (forward,
backward, RMSprop) as compiled functions; a batch of `predict` and of `fit`, whose input is a cached
`tf.data.Dataset`. The first call is the first training step: trace, compile, run. Products have each
library's default precision, which is TensorFloat-32 on recent cards. `difference` is the largest relative
error, by norm, of the last state and of what the first update adds to the weights, from a NumPy loop in
float64. Rows beyond 0.02 are shown and not counted. Prints tables; writes gpu.csv to `--out`.
"""

import argparse
import csv
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "4")  # the NumPy loop runs beside what is timed

from gpu_measurements import Measurements, Task
from problems import SHAPES, TINY
from workers import LIBRARIES, Worker

ON_GPUS = ("tensorflow", "jax")
SETTINGS = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # one card for two
STAGES = ("default", "peer", "form", "slow")
COLUMNS = {
    "first_call": "first call, s",
    "forward": "forward, ms",
    "step": "step, ms",
    "predict_batch": "predict, ms",
    "fit_step": "fit, ms",
    "difference": "difference",
}
# A ratio: its name, column, form of this layer, and the pattern of the contestants on the other side.
SUMMARY = (
    ("fit / with the layer's jit_compile=False", "fit_step", "TensorFlow fit", "*jit_compile=False, *fit"),
    ("fit / fit of the tied layer", "fit_step", "TensorFlow fit", "tied *"),
    ("step / variable per timestep", "step", "TensorFlow XLA", "variable per timestep*"),
    ("step / list of cells under XLA", "step", "TensorFlow XLA", "list of cells*XLA"),
    ("step / tied layer as Keras runs it", "step", "TensorFlow XLA", "tied *TensorFlow"),
    ("step / its own best form", "step", "TensorFlow XLA", "this layer*TensorFlow XLA"),
    ("step / products alone", "step", "TensorFlow XLA", "products alone*"),
    ("JAX: step / jax.lax.scan", "step", "JAX", "jax.lax.scan*"),
    ("JAX: step / its own best form", "step", "JAX", "this layer*JAX"),
)
START_LIMIT = 120.0  # seconds for a library to start
TOLERANCE = 0.02  # TensorFloat-32 alone makes differences of up to 0.008, where 784 timesteps add up
SLOW_FIRST_CALL = 20.0  # seconds: beyond, a contestant is not counted


def process(library: str) -> Worker:
    module, _ = LIBRARIES[library]
    return Worker(library, partial(Measurements, module), SETTINGS)


class Race:
    """Measures until the time is over, and prints each row at once."""

    def __init__(self, out: pathlib.Path, limit: float, minutes: float, at_least: float, only: list[str]):
        self.limit, self.at_least, self.only = limit, at_least, only
        self.deadline = time.monotonic() + 60 * minutes
        self.workers: dict[str, Worker] = {}
        self.libraries: list[str] = []  # the installed ones
        self.rows: dict[str, dict[str, dict]] = {}  # by shape and name
        self.not_run: dict[str, list[str]] = {}
        out.mkdir(parents=True, exist_ok=True)
        self.file = (out / "gpu.csv").open("w", newline="")
        self.writer = csv.DictWriter(self.file, ["shape", "contestant", *COLUMNS, "note"])
        self.writer.writeheader()

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def start_limit(self) -> float:
        return min(START_LIMIT, self.left())

    def start(self, libraries: Iterable[str]) -> None:
        """The libraries' processes, all at once, and what each of them is."""
        self.workers = {library: process(library) for library in libraries}
        for library in libraries:
            try:
                text, on_gpu = self.workers[library].ask("describe", limit=self.start_limit())
                self.workers[library].ask("warm_up", limit=self.start_limit())
            except (RuntimeError, TimeoutError) as error:
                print(f"{library}: left out ({error})", flush=True)
                self.workers.pop(library).close()
                continue
            print(text if on_gpu else f"{text}: no GPU, so these are times of the CPU", flush=True)
            self.libraries.append(library)

    def run(self, shape: str, task: Task, seconds: float) -> None:
        """The contestants on one shape, until `seconds` are over."""
        end = time.monotonic() + seconds
        self.task, self.rows[shape], self.not_run[shape] = task, {}, []
        if not self.left():
            self.not_run[shape] = ["all"]
            return
        entries = [entry for library in self.libraries for entry in self.entries(library)]
        print(
            f"\n{shape}: {task.cell} cell, batch {task.batch}, {task.timesteps} timesteps, "
            f"{task.input_dim} inputs, {task.units} units\n"
            f"| {shape} | {' | '.join(COLUMNS.values())} | note |\n{'| --- ' * (len(COLUMNS) + 2)}|",
            flush=True,
        )
        for _, name, library in sorted(entries, key=lambda entry: STAGES.index(entry[0])):
            if time.monotonic() >= end:
                self.not_run[shape].append(name)
                continue
            row = self.measure(library, name)
            if not row.get("difference", 0.0) <= TOLERANCE:
                row["note"] = f"{row['note']} differs from the plain loop".strip()
            self.rows[shape][name] = row
            cells = (f"{row[column]:.3g}" if column in row else "" for column in COLUMNS)
            print(f"| {name} | {' | '.join(cells)} | {row['note']} |", flush=True)
            self.writer.writerow({"shape": shape, "contestant": name, **row})
            self.file.flush()

    def entries(self, library: str) -> list[tuple[str, str, str]]:
        """Stage, name and library of what is to be measured."""
        try:
            found = self.worker(library).ask("enter", self.task, limit=self.start_limit())
        except (RuntimeError, TimeoutError) as error:
            print(f"{library}: left out ({error})", flush=True)
            self.look_after(library)
            return []
        wanted = [name for name in found if not self.only or any(part in name for part in self.only)]
        return [(found[name], name, library) for name in wanted]

    def worker(self, library: str) -> Worker:
        """The library's process; a new one where the last one is gone."""
        if library not in self.workers:
            self.workers[library] = process(library)
            self.workers[library].ask("warm_up", limit=self.start_limit())
            self.workers[library].ask("enter", self.task, limit=self.start_limit())
        return self.workers[library]

    def measure(self, library: str, name: str) -> dict[str, Any]:
        """What could be found within the limit, and a note of what could not."""
        row: dict[str, Any] = {"note": ""}
        request = "start"
        try:
            worker = self.worker(library)
            end = time.monotonic() + min(self.limit, self.left())
            for request in ("make", "outputs", "first_call", "training"):
                arguments = (name, self.at_least) if request == "make" else ()
                row |= worker.ask(request, *arguments, limit=max(0.0, end - time.monotonic()))
        except TimeoutError:
            row["note"] = f"{request}: stopped at the limit"
        except RuntimeError as error:
            row["note"] = f"{request}: {error}"
        if row["note"]:
            self.look_after(library)
        return row

    def look_after(self, library: str) -> None:
        """Ends a process in which nothing works any more, which an error on a GPU can bring about."""
        try:
            self.workers[library].ask("warm_up", limit=min(20.0, self.left()))
        except (RuntimeError, TimeoutError):
            self.workers.pop(library).close()

    def best(self, shape: str, column: str, pattern: str) -> tuple[float, str]:
        """The fastest contestant that counts, and its name."""
        return min(
            (
                (row[column], name)
                for name, row in self.rows[shape].items()
                if fnmatch(name, pattern) and column in row and not row["note"]
                if row["first_call"] <= SLOW_FIRST_CALL
            ),
            default=(math.nan, ""),
        )

    def summary(self) -> None:
        shapes = list(self.rows)
        print(f"\n| this layer over others | {' | '.join(shapes)} |\n{'| --- ' * (len(shapes) + 1)}|")
        for title, column, ours, pattern in SUMMARY:
            cells = []
            for shape in shapes:
                time_of_ours, _ = self.best(shape, column, f"this layer, {ours}")
                time_of_other, name = self.best(shape, column, pattern)
                ratio = time_of_ours / time_of_other
                cells.append("" if math.isnan(ratio) else f"{ratio:.2f} ({name})")
            print(f"| {title} | {' | '.join(cells)} |")
        default = (self.rows[shape].get("this layer, TensorFlow XLA", {}) for shape in shapes)
        first = (f"{row['first_call']:.1f}" if "first_call" in row else "" for row in default)
        print(f"| first call of a training step, s | {' | '.join(first)} |")
        for shape, names in self.not_run.items():
            if names:
                print(f"\n{shape}, not run for want of time: {'; '.join(names)}")

    def close(self) -> None:
        for worker in self.workers.values():
            worker.close()
        self.file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = ["S1", "L1", "G1", "S4", "S3", "S2"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=default)
    parser.add_argument("--libraries", nargs="+", choices=ON_GPUS, default=list(ON_GPUS))
    parser.add_argument("--only", nargs="+", default=[], help="contestants whose name has one of these in it")
    parser.add_argument("--limit", type=float, default=25, help="the most seconds that a contestant takes")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/gpu"))
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, on any machine")
    args = parser.parse_args()
    problems = {shape: SHAPES[shape] for shape in args.shapes}
    if args.smoke:
        problems = {"tiny": TINY}

    race = Race(args.out, args.limit, args.minutes, 0.0 if args.smoke else 0.3, args.only)
    print(f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}", flush=True)
    with ThreadPoolExecutor(1) as pool:
        tasks = [pool.submit(Task.of, problem) for problem in problems.values()]
        race.start(args.libraries)
        for i, (shape, task) in enumerate(zip(problems, tasks, strict=True)):
            race.run(shape, task.result(), race.left() / (len(problems) - i))
    race.summary()
    race.close()
    rows = [row for of_shape in race.rows.values() for row in of_shape.values()]
    if not rows or (args.smoke and any(row["note"] for row in rows)):
        sys.exit("error: not all that should be timed was")


if __name__ == "__main__":
    main()
