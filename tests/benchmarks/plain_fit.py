"""Times `fit` and `predict` as users call them on a CPU, where Keras compiles nothing with XLA.

    python tests/benchmarks/plain_fit.py [--shapes S1 L1] [--rounds 11] [--smoke]

This layer, with its default arguments and in other forms, against the ways to write an untied recurrence by
hand in a `keras.Layer`, and against Keras's tied layer; all with TensorFlow and Keras's RMSprop. What writes
large stacks runs with TensorFlow's own allocator, too. Each has a process of its own and they take turns
within every round. The outputs of all must agree with a NumPy loop to 1e-4. One whose first step takes more
than 20 s is not counted. Prints a table for each shape: milliseconds as medians, and the median of each
round's ratio to the fastest code by hand.
"""

import argparse
import random
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from problems import SHAPES, TINY, WEIGHTS, Problem, run
from workers import TOLERANCE, Worker, mean_seconds

SLOW_FIRST_CALL = 20.0  # seconds
BY_HAND = ("list of cells", "variable per timestep", "while loop")
OURS = {
    "this layer": {},
    "this layer, unroll=False": {"unroll": False},
    "this layer, unroll=True": {"unroll": True},
    "this layer, jit_compile=True": {"jit_compile": True},
    "this layer, compile(jit_compile=True)": {},
}
# Has TensorFlow keep freed memory, instead of the C library's allocator.
VARIABLE = "TF_CPU_ALLOCATOR_USE_BFC"
WITH_VARIABLE = f", {VARIABLE}=true"
LARGE_STACKS = ("this layer", "this layer, compile(jit_compile=True)", "while loop")


def names(problem: Problem) -> list[str]:
    simple = problem.cell == "simple"
    plain = [*OURS, *(BY_HAND if simple else BY_HAND[:1]), "tied layer"]
    return [*plain, *(name + WITH_VARIABLE for name in LARGE_STACKS if name in plain)]


class Answers:
    """In a process of its own: one contestant."""

    def make(self, problem: Problem, name: str, stacks: dict[str, np.ndarray]) -> float:
        """The seconds of the first `fit`, of one step."""
        from contestants import by_hand
        from contestants.with_tensorflow import LAYERS, Fitting, keras

        untied, tied, _, cell = LAYERS[problem.cell]
        units, timesteps = problem.units, problem.timesteps
        makers = {
            "list of cells": lambda: by_hand.ListOfCells(partial(cell, units), timesteps),
            "variable per timestep": lambda: by_hand.VariablePerTimestep(units, timesteps),
            "while loop": lambda: by_hand.WhileLoop(units, timesteps),
            "tied layer": lambda: tied(units),
        }
        layer = untied(units, **OURS[name]) if name in OURS else makers[name]()
        self.model = keras.Sequential([keras.Input((timesteps, problem.input_dim)), layer])
        self.problem, self.runner = problem, Fitting()
        self.runner.problem, self.runner.model = problem, self.model
        self.set_weights(stacks)
        if name.endswith("compile(jit_compile=True)"):
            self.runner.compile_options = {"jit_compile": True}
        self.runner.compile()
        self.model.optimizer.learning_rate = problem.learning_rate
        start = time.perf_counter()
        self.runner.fit_step()
        return time.perf_counter() - start

    def set_weights(self, stacks: dict[str, np.ndarray]) -> None:
        """Of a layer with stacks, one weight set, or one for each timestep in turn."""
        arrays = [stacks[name] for name in WEIGHTS]
        if len(self.model.weights) > len(arrays):
            self.model.set_weights([array[t] for t in range(len(arrays[0])) for array in arrays])
        elif self.model.weights[0].shape == arrays[0].shape:
            self.model.set_weights(arrays)
        else:
            self.model.set_weights([array[0] for array in arrays])

    def error(self, expected: np.ndarray) -> float:
        x, _ = self.problem.data()
        received = self.model.predict(x, batch_size=self.problem.batch, verbose=0)
        return float(np.abs(received - expected).max() / np.abs(expected).max())

    def seconds(self, mode: str, at_least: float) -> float:
        """Seconds of a batch, from one call of as many as take about `at_least`."""
        call = {"fit": self.runner.fit_step, "predict": self.runner.predict_batch}[mode]
        self.runner.fit_steps = 2
        call()
        self.runner.fit_steps = max(3, int(at_least / (mean_seconds(call, 0) / 2)))
        return mean_seconds(call, 0) / self.runner.fit_steps


def race(problem: Problem, rounds: int, at_least: float) -> dict[str, dict[str, Any]]:
    """By contestant: the first call, and the seconds of each mode by round."""
    found: dict[str, dict[str, Any]] = {}
    workers = {}
    stacks = {tied: problem.weights(tied) for tied in (False, True)}
    states = {tied: run(problem.cell, problem.data()[0], stacks[tied])[0][-1] for tied in stacks}
    for name in names(problem):
        contestant, tied = name.removesuffix(WITH_VARIABLE), name == "tied layer"
        settings = {} if contestant == name else {VARIABLE: "true"}
        worker = Worker("tensorflow", Answers, settings)
        try:
            first = worker.ask("make", problem, contestant, stacks[tied], limit=3 * SLOW_FIRST_CALL)
            if not worker.ask("error", states[tied]) <= TOLERANCE:
                raise SystemExit(f"error: {name} differs from the plain loop")
            found[name], workers[name] = {"first": first}, worker
        except TimeoutError:
            print(f"{name}: no first step within {3 * SLOW_FIRST_CALL:.0f} s", flush=True)
    for mode in ("fit", "predict"):
        times = np.zeros((rounds, len(workers)))
        for row in times:
            for i in random.sample(range(len(workers)), len(workers)):
                row[i] = workers[list(workers)[i]].ask("seconds", mode, at_least)
        for name, column in zip(workers, times.T, strict=True):
            found[name][mode] = column
    for worker in workers.values():
        worker.close()
    return found


def table(shape: str, problem: Problem, found: dict[str, dict[str, Any]]) -> None:
    p = problem
    print(f"\n{shape}: {p.cell} cell, batch {p.batch}, {p.timesteps} timesteps, ", end="")
    print(f"{p.input_dim} inputs, {p.units} units\n")
    print("| | first step, s | fit, ms | over the best by hand | predict, ms | over the best by hand |")
    print("| --- | --- | --- | --- | --- | --- |")
    counted = [n for n in found if n in BY_HAND and found[n]["first"] <= SLOW_FIRST_CALL]
    for name, figures in found.items():
        cells = [name, f"{figures['first']:.1f}"]
        for mode in ("fit", "predict"):
            best = min(counted, key=lambda n: np.median(found[n][mode]))
            ratio = np.median(figures[mode] / found[best][mode])
            cells += [f"{1e3 * np.median(figures[mode]):.2f}", f"{ratio:.2f}"]
        print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = ["S1", "S2", "S3", "S4", "L1", "G1"]
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=default)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.2, help="about what one measurement takes")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    args = parser.parse_args()
    random.seed(0)
    tiny = replace(TINY, learning_rate=SHAPES["S1"].learning_rate)
    problems = {"tiny": tiny} if args.smoke else {shape: SHAPES[shape] for shape in args.shapes}
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, args.seconds)
    for shape, problem in problems.items():
        table(shape, problem, race(problem, rounds, at_least))


if __name__ == "__main__":
    main()
