"""Unfolds ISTA, an algorithm for sparse codes, into a network, and trains the weights of each step (LISTA).

    python examples/lista.py --quick           # a problem of a quarter of the size: a minute
    python examples/lista.py                   # 250 measurements of 500 coefficients: half an hour, two cores
    python examples/lista.py --cell tilista    # another cell, see lista_cells.py

Codes x with a tenth of 500 entries other than zero are to be found from y = A x. Writes errors.csv,
errors.png, weights.png and model.keras to `--out`.
"""

import argparse
import pathlib
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
from command_line import end_on_interrupt, fail, positive, replace, start, verbosity
from keras import ops
from lista_cells import CELLS, SoftThresholdCell, analytic
from matplotlib.figure import Figure

from untied_rnn import UntiedRNN, plot
from untied_rnn.callbacks import IntactBackup

BATCH_SIZE = 64
STEPS_PER_EPOCH = 1000
DENSITY = 0.1
# Of the lasso problem `||y - A x||^2 / 2 + lam ||x||_1`: where training starts, and the best for FISTA.
LAM, FISTA_LAM = 0.4, 0.2


def dictionary(measurements: int, units: int, seed: int) -> np.ndarray:
    """A random matrix (measurements, units) whose columns have length one."""
    a = np.random.default_rng([seed, 0]).normal(size=(measurements, units))
    return a / np.linalg.norm(a, axis=0)


def sparse_codes(count: int, units: int, seed: list[int]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, units)) * (rng.random((count, units)) < DENSITY)


def step_size(a: np.ndarray) -> float:
    return 1 / (1.001 * float(np.linalg.norm(a, 2)) ** 2)


def soft(z: np.ndarray, theta: float) -> np.ndarray:
    return np.sign(z) * np.maximum(np.abs(z) - theta, 0)


def ista(a: np.ndarray, y: np.ndarray, lam: float, steps: int, momentum: bool = False) -> np.ndarray:
    """The codes after each step of ISTA, or of FISTA, as (codes, steps, units)."""
    size = step_size(a)
    x = z = np.zeros((len(y), a.shape[1]))
    t, path = 1.0, []
    for _ in range(steps):
        x_before, x = x, soft(z + size * (y - z @ a.T) @ a, size * lam)
        t_before, t = t, (1 + np.sqrt(1 + 4 * t**2)) / 2 if momentum else 1.0
        z = x + (t_before - 1) / t * (x - x_before)
        path.append(x)
    return np.stack(path, axis=1)


def unfolded(a: np.ndarray, lam: float, steps: int, cell: str = "lista") -> keras.Model:
    """A network that computes the codes after each step. Before training these are ISTA's codes.

    With `cell="alista"` it starts as ISTA with `analytic(a)` in place of the `A` of the gradient.
    """
    measurements, units = a.shape
    _, cell_class, sharing = CELLS[cell]
    y = keras.Input((measurements,))
    if cell_class is SoftThresholdCell:
        size = step_size(a)
        projection = keras.layers.Dense(units, use_bias=False)  # the same in each step: computed once
        inputs = projection(y)
        projection.set_weights([size * a])
        weights = {"kernel": np.eye(units) - size * a.T @ a}
    else:
        w = analytic(a) if cell == "alista" else a
        size = 1 / (1.001 * float(np.linalg.norm(w.T @ a, 2)))
        inputs = y
        weights = {"kernel": w, "dictionary": a, "size": np.array(size)}
    iteration = UntiedRNN(
        cell_class(units), return_sequences=True, unroll=True, sharing=sharing, name="iteration"
    )
    model = keras.Model(y, iteration(keras.layers.RepeatVector(steps)(inputs)))
    for name, value in {**weights, "threshold": np.array(size * lam)}.items():
        variable = getattr(iteration, name)
        variable.assign(np.broadcast_to(value, variable.shape))
    return model


def log_error(gamma: float) -> Callable[[Any, Any], Any]:
    """The logarithm of the error of every step, weighted by `gamma ** (steps to go)`.

    Decibels are what is asked for. The earlier steps show the way, or the last ones would learn from nothing.
    """

    def loss(codes: Any, path: Any) -> Any:
        errors = ops.sum(ops.square(path - ops.expand_dims(codes, 1)), axis=(0, 2))
        steps_to_go = ops.arange(path.shape[1] - 1, -1, -1, dtype=path.dtype)
        return ops.sum(gamma**steps_to_go * ops.log(errors / ops.sum(ops.square(codes))))

    return loss


def decibels(codes: Any, path: Any) -> Any:
    """The error of the last step."""
    error = ops.sum(ops.square(path[:, -1] - codes)) / ops.sum(ops.square(codes))
    return 10 * ops.log(error) / np.log(10)


class FreshCodes(keras.utils.PyDataset):
    """Batches that are drawn anew in each step: there is nothing to overfit."""

    def __init__(self, a: np.ndarray, seed: int, epoch: int = 0):
        super().__init__()
        self.a, self.seed, self.epoch = a, seed, epoch

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        codes = sparse_codes(BATCH_SIZE, self.a.shape[1], [self.seed, 1, self.epoch, i])
        return (codes @ self.a.T).astype("float32"), codes.astype("float32")


def nmse(codes: np.ndarray, path: np.ndarray) -> np.ndarray:
    """The error of each step in decibels, over all codes."""
    return 10 * np.log10(((path - codes[:, None]) ** 2).sum(axis=(0, 2)) / (codes**2).sum())


def draw(errors: pd.DataFrame, path: pathlib.Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, style in zip(errors.columns, ("o-", "s-", "kx", "^-"), strict=True):
        axes.plot(errors.index, errors[name], style, label=name, markersize=5)
    axes.set(xlabel="step", ylabel="error (dB)", title="Squared error of the codes over their square")
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_weights(layer: UntiedRNN, path: pathlib.Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    plot.weight_norms(layer, ax=figure.subplots())
    figure.savefig(path, dpi=120)


def problem(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """The dictionary and the codes to test on."""
    if args.data is None:
        units = 125 if args.quick else 500
        return dictionary(units // 2, units, args.seed), sparse_codes(1000, units, [args.seed, 2])
    try:
        with np.load(args.data, allow_pickle=False) as arrays:
            a, codes = arrays["A"].astype("float64"), arrays["x_test"].T.astype("float64")
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        fail(f"{args.data} is no sparse coding problem: expected a .npz with A and x_test", error)
    if a.ndim != 2 or codes.ndim != 2 or a.shape[1] != codes.shape[1]:
        sys.exit(
            f"error: {args.data}: expected A (m, n) and x_test (n, codes), "
            f"received {a.shape} and {codes.T.shape}"
        )
    return a, codes


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--data", help=".npz with A (m, n) and x_test (n, codes); default: made from the seed"
    )
    parser.add_argument("--cell", choices=CELLS, default="lista", help="what a step computes (default lista)")
    parser.add_argument("--steps", type=positive, default=16, help="steps of the algorithm (default 16)")
    parser.add_argument("--epochs", type=positive, default=30, help="of 1,000 fresh batches (default 30)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/lista"))
    parser.add_argument("--resume", action="store_true", help="resume the run with the same options in --out")
    parser.add_argument("--quick", action="store_true", help="125 coefficients, 3 epochs")
    args = parser.parse_args()
    if args.quick:
        args.epochs = 3
    return args


def main() -> None:
    start(train, parse())


def train(args: argparse.Namespace) -> None:
    a, codes = problem(args)
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    y = codes @ a.T
    model = unfolded(a, LAM, args.steps, args.cell)

    def errors_now() -> np.ndarray:
        return nmse(codes, model.predict(y, batch_size=500, verbose=0))

    errors = pd.DataFrame(
        {
            "ISTA": nmse(codes, ista(a, y, LAM, args.steps)),
            "FISTA": nmse(codes, ista(a, y, FISTA_LAM, args.steps, momentum=True)),
            "before training": errors_now(),
        },
        index=pd.RangeIndex(1, args.steps + 1, name="step"),
    )
    schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, args.epochs * STEPS_PER_EPOCH)
    model.compile(keras.optimizers.Adam(schedule), log_error(0.8), metrics=[decibels])
    model.summary()
    backup = IntactBackup(args.out / "backup.zip")
    if not args.resume:
        backup.archive.unlink(missing_ok=True)
    fresh = FreshCodes(a, args.seed, epoch=backup.initial_epoch)
    model.fit(fresh, epochs=args.epochs, shuffle=False, verbose=verbosity(), callbacks=[backup])
    name = CELLS[args.cell][0]
    errors[name] = errors_now()
    print(errors.round(2).to_string())
    replace(args.out / "errors.csv", lambda path: errors.round(4).to_csv(path))
    replace(args.out / "errors.png", lambda path: draw(errors, path))
    replace(args.out / "model.keras", model.save)
    replace(args.out / "weights.png", lambda path: draw_weights(model.get_layer("iteration"), path))
    backup.archive.unlink()
    last = errors.iloc[-1]
    print(f"error of {name} {last[name]:.2f} dB, of FISTA {last.FISTA:.2f} dB; results in {args.out}")


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command and --resume")
    main()
