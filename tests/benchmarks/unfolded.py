"""Times `UntiedRNN(cell)` against a Python list of the same cells, through `fit` and `predict`.

    python tests/benchmarks/unfolded.py [--cells LISTA VarNet] [--modes plain xla jax] [--rounds 11] [--smoke]

The cells belong to unfolded algorithms (unfolded_cells.py). Each contestant has a process of its own
and they take turns within every round. All compute from the same weights what the list computes when it is
called eagerly, to 1e-4 (the outputs of `predict`, the loss of `fit`), or the program ends. Prints, for
each mode, the seconds of the first call (trace, compile, run; "-" if they are more than 60), and the
milliseconds of a batch over the list's as the median of each round's two.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from contestants.by_hand import ListOfCells
from contestants.fitting import without_autotune
from unfolded_cells import DetNetCell, HedgingCell, LAMPCell, LISTACell, VarNetCell
from workers import TOLERANCE, Worker

from untied_rnn import UntiedRNN

LIMIT = 60  # seconds of a first call
MANY = 10**9  # batches: the stopwatch ends a run

# Name: backend, `jit_compile` of `compile`.
MODES = {"plain": ("tensorflow", "auto"), "xla": ("tensorflow", True), "jax": ("jax", "auto")}


@dataclass(frozen=True)
class Problem:
    cell: type[keras.Layer]
    timesteps: int
    features: int
    batch: int
    repeated: bool = True  # the same input at each timestep

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        steps = () if self.repeated else (self.timesteps,)
        output_size, *_ = keras.tree.flatten(self.cell.state_size)
        return tuple(
            rng.random((self.batch, *shape), "float32") for shape in ((*steps, self.features), (output_size,))
        )


PROBLEMS = {
    "LISTA": Problem(LISTACell, 16, 250, 64),
    "LAMP": Problem(LAMPCell, 16, 250, 64),
    "DetNet": Problem(DetNetCell, 30, 20 + 20 * 20, 500),
    "VarNet": Problem(VarNetCell, 12, 2 * 32 * 32, 8),
    "hedging": Problem(HedgingCell, 30, 1, 1024, repeated=False),
}


def untied(unroll: bool | int | str) -> Callable[[Problem], keras.Layer]:
    def make(problem: Problem) -> keras.Layer:
        layer = UntiedRNN(problem.cell(), unroll=unroll)
        if not problem.repeated:
            return layer
        return keras.Sequential([keras.layers.RepeatVector(problem.timesteps), layer])

    return make


CONTESTANTS = {
    "auto": untied("auto"),
    "False": untied(False),
    "4": untied(4),
    "True": untied(True),
    "list": lambda problem: ListOfCells(problem.cell, problem.timesteps),
}


class Stopwatch(keras.callbacks.Callback):
    """Ends `fit` or `predict` after as many batches as take `at_least` seconds, not counting the first."""

    def __init__(self, at_least: float):
        super().__init__()
        self.at_least, self.ends = at_least, []

    def on_train_batch_end(self, batch: int, logs: dict) -> None:
        float(logs["loss"])  # waits for it
        self.model.stop_training = self.is_over()

    def on_predict_batch_end(self, batch: int, logs: dict) -> None:
        keras.ops.convert_to_numpy(logs["outputs"])
        self.model.stop_predicting = self.is_over()

    def is_over(self) -> bool:
        self.ends.append(time.perf_counter())
        return self.ends[-1] - self.ends[0] >= self.at_least

    def seconds(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


class Contestant:
    """A layer in a model, of one problem at a time."""

    def __init__(self, name: str, jit_compile: bool | str):
        self.make, self.jit_compile = CONTESTANTS[name], jit_compile

    def prepare(self, problem: Problem) -> None:
        x, y = problem.data()
        keras.utils.set_random_seed(0)  # the same weights in each process
        cells = ListOfCells(problem.cell, problem.timesteps)
        outputs = keras.ops.convert_to_numpy(cells(x))
        inputs = keras.Input(x.shape[1:])
        layer = self.make(problem)
        model = keras.Model(inputs, layer(inputs))
        weights = [cell.get_weights() for cell in cells.cells]
        if isinstance(layer, ListOfCells):
            layer.set_weights([weight for of_cell in weights for weight in of_cell])
        else:
            layer.set_weights([np.stack(stack) for stack in zip(*weights, strict=True)])
        model.compile(keras.optimizers.Adam(1e-9), "mse", jit_compile=self.jit_compile)
        # Cached, and of batches whose size is not known before they come.
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(problem.batch).cache().repeat()
        data = without_autotune(data)

        def fit(watch: Stopwatch) -> np.ndarray:
            history = model.fit(data, steps_per_epoch=MANY, shuffle=False, verbose=0, callbacks=[watch])
            return np.array(history.history["loss"])

        def predict(watch: Stopwatch) -> np.ndarray:
            return model.predict(data, steps=MANY, verbose=0, callbacks=[watch])

        self.calls = {"fit": (fit, np.mean((outputs - y) ** 2)), "predict": (predict, outputs)}

    def first_call(self, call: str) -> tuple[float, float]:
        """The seconds of the first batch, and the relative error of its result."""
        run, expected = self.calls[call]
        start = time.perf_counter()
        result = run(Stopwatch(at_least=0))
        seconds = time.perf_counter() - start
        return seconds, float(np.abs(result - expected).max() / np.abs(expected).max())

    def seconds(self, call: str, at_least: float) -> float:
        """Seconds per batch."""
        run, _ = self.calls[call]
        watch = Stopwatch(at_least)
        run(watch)
        return watch.seconds()

    def operations(self, problem: Problem) -> str:
        """How many operations TensorFlow traces in one step of the cell."""
        if keras.backend.backend() != "tensorflow":
            return "-"
        cell = problem.cell()
        sizes = [problem.features, *keras.tree.flatten(cell.state_size)]
        cell.build((None, problem.features))
        step = tf.function(lambda x, *states: cell(x, list(states)))
        function = step.get_concrete_function(*(tf.TensorSpec((None, size)) for size in sizes))
        return str(len(function.graph.get_operations()))


class Race:
    """The contestants of one mode."""

    def __init__(self, mode: str):
        self.backend, self.jit_compile = MODES[mode]
        self.processes = {name: self.start(name) for name in CONTESTANTS}

    def start(self, contestant: str) -> Worker:
        return Worker(self.backend, partial(Contestant, contestant, self.jit_compile))

    def first_call(self, contestant: str, problem: Problem, call: str) -> float:
        """Its seconds, not a number if they are too many."""
        try:
            seconds, error = self.processes[contestant].ask("first_call", call, limit=LIMIT)
        except TimeoutError:  # which has ended the process
            self.processes[contestant] = self.start(contestant)
            self.processes[contestant].ask("prepare", problem)
            return np.nan
        if not error <= TOLERANCE:
            raise SystemExit(f"error: {contestant} is off by {error:.1e} in {call} of {problem}")
        return seconds

    def row(self, problem: Problem, call: str, rounds: int, at_least: float) -> list[str]:
        first = {contestant: self.first_call(contestant, problem, call) for contestant in CONTESTANTS}
        times = {contestant: np.full(rounds, np.nan) for contestant in CONTESTANTS}
        entered = [contestant for contestant in CONTESTANTS if first[contestant] > 0]
        for turn in range(rounds):
            random.shuffle(entered)
            for contestant in entered:
                times[contestant][turn] = 1e3 * self.processes[contestant].ask("seconds", call, at_least)
        ratios = [np.median(times[contestant] / times["list"]) for contestant in CONTESTANTS]
        figures = [f"{seconds:.1f}" for seconds in first.values()]
        figures += [f"{np.median(times['list']):.2f}", *(f"{ratio:.2f}" for ratio in ratios[:-1])]
        return ["-" if figure == "nan" else figure for figure in figures]

    def close(self) -> None:
        for process in self.processes.values():
            process.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--smoke", action="store_true", help="plain, two timesteps of one cell, one round")
    args = parser.parse_args()
    random.seed(0)
    problems = {name: PROBLEMS[name] for name in args.cells}
    rounds, at_least = args.rounds, 0.15
    if args.smoke:
        problems = {"hedging": replace(PROBLEMS["hedging"], timesteps=2, batch=4)}
        args.modes, rounds, at_least = ["plain"], 1, 1e-6

    head = ["cell", "operations", "call", *(f"{name}, first (s)" for name in CONTESTANTS), "list (ms)"]
    head += [f"{name} / list" for name in CONTESTANTS if name != "list"]
    for mode in args.modes:
        print(f"\n{mode}\n\n| {' | '.join(head)} |\n{'| --- ' * len(head)}|", flush=True)
        race = Race(mode)
        for name, problem in problems.items():
            for process in race.processes.values():
                process.ask("prepare", problem)
            for call in ("predict", "fit"):  # in this order: `fit` changes the weights, if only a little
                row = race.row(problem, call, rounds, at_least)
                operations = race.processes["list"].ask("operations", problem)
                print(f"| {' | '.join([name, operations, call, *row])} |", flush=True)
        race.close()


if __name__ == "__main__":
    main()
