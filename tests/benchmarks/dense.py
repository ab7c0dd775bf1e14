"""Times `UntiedDense` against the bare batched product that it computes, on TensorFlow.

    python tests/benchmarks/dense.py [--shapes D1 D4] [--rounds 11] [--smoke]

The product is written in two ways, of which the faster is the yardstick. All agree with NumPy to 1e-4
(outputs and gradients) before they are timed, and take turns within every round. Prints the milliseconds
of a call, and the layer's over the yardstick's as the median of each round's two.
"""

import argparse
import os
import random
from dataclasses import dataclass

os.environ.update(KERAS_BACKEND="tensorflow", TF_CPP_MIN_LOG_LEVEL="3")

import keras
import numpy as np
import tensorflow as tf
from contestants.with_tensorflow import Contestant
from workers import TOLERANCE, seconds_per_call

from untied_rnn import UntiedDense

MODES = ("forward", "gradients", "step")


@dataclass(frozen=True)
class Problem:
    batch: int
    timesteps: int
    input_dim: int
    units: int
    learning_rate: float = 1e-9  # as in problems.py

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs `(batch, timesteps, input_dim)` and targets `(batch, timesteps, units)`."""
        rng = np.random.default_rng(0)
        return tuple(
            rng.standard_normal((self.batch, self.timesteps, n), dtype="float32")
            for n in (self.input_dim, self.units)
        )

    def weights(self) -> list[np.ndarray]:
        rng = np.random.default_rng(1)
        kernel = rng.standard_normal((self.timesteps, self.input_dim, self.units), dtype="float32")
        return [
            kernel / np.float32(self.input_dim**0.5),
            rng.standard_normal((self.timesteps, self.units), dtype="float32"),
        ]

    def expected(self) -> list[np.ndarray]:
        """Outputs and gradients of kernel and bias, in float64."""
        x, y, kernel, bias = (array.astype("float64") for array in (*self.data(), *self.weights()))
        outputs = np.einsum("bti,tiu->btu", x, kernel) + bias
        delta = (outputs - y) / (self.batch * self.units)  # the loss is the mean over these two axes
        return [outputs, np.einsum("bti,btu->tiu", x, delta), delta.sum(0)]


SHAPES = {
    "D1": Problem(128, 28, 64, 64),
    "D2": Problem(256, 100, 16, 32),
    "D3": Problem(64, 784, 8, 16),
    "D4": Problem(32, 28, 256, 256),
}


class Layer(Contestant):
    def make(self) -> None:
        p = self.problem
        layer = UntiedDense(p.units)
        self.state = keras.Sequential([keras.Input((p.timesteps, p.input_dim)), layer])
        layer.set_weights(p.weights())
        self.variables = layer.trainable_variables
        self.build_optimizer()


class Bare(Contestant):
    def make(self) -> None:
        self.variables = [keras.Variable(weight) for weight in self.problem.weights()]
        self.build_optimizer()

    def state(self, x: tf.Tensor) -> tf.Tensor:
        kernel, bias = (variable.value for variable in self.variables)
        return self.product(x, kernel) + bias


class Einsum(Bare):
    def product(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.einsum("bti,tiu->btu", x, kernel)


class Matmul(Bare):
    def product(self, x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.transpose(tf.matmul(tf.transpose(x, (1, 0, 2)), kernel), (1, 0, 2))


CONTESTANTS = {"UntiedDense": Layer, "einsum": Einsum, "matmul": Matmul}


def make(problem: Problem) -> dict[tuple[str, bool], Contestant]:
    """All contestants, with XLA and without; ends the program if one computes something else."""
    made = {}
    for xla in (False, True):
        for name, maker in CONTESTANTS.items():
            contestant = made[name, xla] = maker(problem, jit_compile=xla)
            results = [contestant.forward(), *contestant.gradients()]
            for result, expected in zip(results, problem.expected(), strict=True):
                error = np.abs(result - expected).max() / np.abs(expected).max()
                if not error <= TOLERANCE:
                    raise SystemExit(f"error: {name} differs from NumPy by {error:.1e} at {problem}")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    args = parser.parse_args()
    random.seed(0)
    problems = {"tiny": Problem(4, 5, 3, 6)} if args.smoke else {name: SHAPES[name] for name in args.shapes}
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, 0.05)

    print(f"| ms a call | mode | {' | '.join(CONTESTANTS)} | UntiedDense / faster of the others |")
    print("| --- " * (len(CONTESTANTS) + 3) + "|")
    for shape, problem in problems.items():
        contestants = make(problem)
        runs = [(*key, mode) for key in contestants for mode in MODES]
        times = {run: np.zeros(rounds) for run in runs}
        for turn in range(rounds):
            random.shuffle(runs)
            for name, xla, mode in runs:
                call = getattr(contestants[name, xla], mode)
                times[name, xla, mode][turn] = 1e3 * seconds_per_call(call, at_least)
        for xla in (False, True):
            for mode in MODES:
                columns = {name: times[name, xla, mode] for name in CONTESTANTS}
                yardstick = min(("einsum", "matmul"), key=lambda name: np.median(columns[name]))
                ratio = np.median(columns["UntiedDense"] / columns[yardstick])
                medians = " | ".join(f"{np.median(column):.2f}" for column in columns.values())
                print(
                    f"| {shape}{', XLA' if xla else ''} | {mode} | {medians} | {ratio:.2f} ({yardstick}) |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
