"""Compares tied, untied and what lies between on MNIST digits read row by row, to see when untying pays.

    python examples/should_you_untie.py --quick         # tied and untied, 5,000 bundled digits, no network
    python examples/should_you_untie.py --data mnist    # everything, all 70,000

One layer with `sharing=Blocks(block_size)`, from 28 timesteps to a weight set (tied) to 1 (untied), and a
Dense head:

    rows      at the same hidden size and at the same number of parameters, and by the number of digits
    cut       at the same number of parameters, digits that end after a random row, most early: by length
    made      the same, rows of noise, each of which goes through a matrix of its own into the label

Writes results.csv after each run and results.png to `--out`; the same command goes on after an interruption.
"""

import argparse
import functools
import math
import pathlib
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from command_line import end_on_interrupt, fail, positive, replace
from digit_batches import BATCH_SIZE, batches
from digits import Arrays, load_digits
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from mnist_rows import compiled

from untied_rnn import TimeSmoothness, UntiedSimpleRNN
from untied_rnn.sharing import Blocks

ROWS = 28
BLOCK_SIZES = (28, 14, 7, 4, 2, 1)
FEW = (28, 4, 1)  # tied, between, untied: for all but the first comparison
ENDS = (28, 1)
UNITS = 50
SMOOTHNESS = 1e-4
FEWER_DIGITS = (500, 2000, 8000)
LENGTHS = (8, 12, 16, 20, 24, 28)
PADDING = -1.0  # not 0: that is a real row without ink
TICKS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99]


class Run(NamedTuple):
    """What a result is a function of. The seed draws digits, their lengths, weights and batches."""

    task: str
    block_size: int
    units: int
    smoothness: float
    digits: int
    steps: int
    seed: int


def parameters(block_size: int, units: int) -> int:
    """Numbers in a weight set (W, U, b) for each block, and in the head."""
    blocks = math.ceil(ROWS / block_size)
    return blocks * (ROWS * units + units**2 + units) + 10 * units + 10


def units_for(block_size: int, budget: int) -> int:
    """The hidden size whose number of parameters is closest to `budget`: a quadratic equation."""
    blocks = math.ceil(ROWS / block_size)
    half = (blocks * (ROWS + 1) + 10) / 2
    return round((math.sqrt(half**2 + blocks * (budget - 10)) - half) / blocks)


def plan(sizes: tuple[int, ...], few: tuple[int, ...], digits: int, steps: int, seed: int) -> list[Run]:
    full = Run("rows", 1, UNITS, 0.0, digits, steps, seed)
    budget = parameters(full.block_size, full.units)
    by_size = {k: full._replace(block_size=k) for k in sizes}
    by_parameters = {k: run._replace(units=units_for(k, budget)) for k, run in by_size.items()}
    by_digits = [by_size[k]._replace(digits=n) for n in FEWER_DIGITS if n < digits for k in few]
    cut = [by_parameters[k]._replace(task="cut") for k in few]
    smooth = full._replace(task="cut", smoothness=SMOOTHNESS)
    made = [by_parameters[k]._replace(task="made") for k in few]
    runs = [*by_size.values(), *by_parameters.values(), *by_digits, *cut, smooth, *made]
    return list(dict.fromkeys(runs))  # each once


@functools.cache
def network(block_size: int, units: int, smoothness: float, masked: bool, steps: int) -> keras.Model:
    """The model of `mnist_rows.py`. It is compiled once, for all seeds."""
    rows = keras.Input((ROWS, 28))
    regularizer = TimeSmoothness(l2=smoothness) if smoothness else None
    layer = UntiedSimpleRNN(
        units,
        sharing=Blocks(block_size),
        kernel_regularizer=regularizer,
        recurrent_regularizer=regularizer,
        bias_regularizer=regularizer,
    )
    state = layer(keras.layers.Masking(PADDING)(rows) if masked else rows)
    model = keras.Model(rows, keras.layers.Dense(10)(state))
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    # `clipnorm` shortens the gradients of all timesteps together; the measured accuracies are of that.
    model = compiled(model, keras.optimizers.Adam(schedule, clipnorm=1.0), steps)
    model.jit_compile = False  # XLA would compile for longer than these short runs take
    return model


def restart(model: keras.Model, seed: int) -> None:
    """Draws the weights anew and makes the optimizer forget."""
    keras.utils.set_random_seed(seed)
    model.set_weights(keras.models.clone_model(model).get_weights())
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))


@functools.cache
def made(train: int, test: int) -> Arrays:
    """Rows `x_t` of noise with the label `argmax(sum_t x_t C_t)`: what to do differs along time."""
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((ROWS, 28, 10))

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = 0.1 * rng.standard_normal((count, ROWS, 28), "float32")  # small, where tanh is close to linear
        return x, np.einsum("nti,tij->nj", x, matrices, optimize=True).argmax(axis=1).astype("int32")

    return *drawn(train), *drawn(test)


def cut(x: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    after = np.arange(ROWS) >= np.reshape(lengths, (-1, 1))
    return np.where(after[..., None], np.float32(PADDING), x)


def mostly_short(digits: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths from 4: a fifth of what is left ends after each row. One of 200 digits is whole."""
    return np.minimum(ROWS, 3 + rng.geometric(0.2, digits))


def accuracies(run: Run, data: Arrays) -> dict[int, float]:
    """Trains; returns the accuracy on the test digits, by their length."""
    x_train, y_train, x_test, y_test = data
    if run.task == "made":
        x_train, y_train, x_test, y_test = made(len(x_train), len(x_test))
    rng = np.random.default_rng(run.seed)
    chosen = rng.permutation(len(x_train))[: run.digits]
    x, y = x_train[chosen], y_train[chosen]
    tests = {ROWS: x_test}
    if run.task == "cut":
        x, tests = cut(x, mostly_short(len(x), rng)), {n: cut(x_test, n) for n in LENGTHS}

    model = network(run.block_size, run.units, run.smoothness, run.task == "cut", run.steps)
    restart(model, run.seed)
    stream = batches(x, y, run.seed, first_step=0, distort=False)
    model.fit(stream, steps_per_epoch=run.steps, shuffle=False, verbose=0)
    return {n: model.evaluate(images, y_test, batch_size=1000, verbose=0)[1] for n, images in tests.items()}


def spread(axes: Axes, table: pd.DataFrame, x: str, label: str, style: str = "o-") -> None:
    """The mean over seeds, from the lowest to the highest."""
    values = table.groupby(x).accuracy.agg(["min", "mean", "max"])
    bars = [values["mean"] - values["min"], values["max"] - values["mean"]]
    axes.errorbar(values.index, values["mean"], bars, fmt=style, capsize=3, markersize=4, label=label)


def name(block_size: int, smoothness: float = 0.0) -> str:
    names = {1: "untied", ROWS: "tied"}
    return names.get(block_size, f"blocks of {block_size}") + (", TimeSmoothness" if smoothness else "")


def draw(table: pd.DataFrame, path: pathlib.Path) -> None:
    budget = parameters(1, UNITS)
    solved = {k: units_for(k, budget) for k in table.block_size.unique()}
    rows = table[table.task == "rows"]
    small, full = rows[rows.units == UNITS], rows[rows.digits == rows.digits.max()]
    figure = Figure(figsize=(10, 8), layout="constrained")
    (sizes, digits), (lengths, noise) = figure.subplots(2, 2)

    spread(sizes, full[full.units == UNITS], "block_size", f"{UNITS} units")
    same_budget = full[full.units == full.block_size.map(solved)]
    spread(sizes, same_budget, "block_size", f"{budget:,} parameters", "s-")
    spread(noise, table[table.task == "made"], "block_size", f"{budget:,} parameters", "s-")
    for axes, title in ((sizes, "digits"), (noise, "rows of noise, each with a matrix of its own")):
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_xticks(list(solved), list(map(str, solved)))
        axes.set(title=title, xlabel="block size (28 tied, 1 untied)")

    for k, part in small[small.block_size.isin(table[table.task == "cut"].block_size)].groupby("block_size"):
        spread(digits, part, "digits", name(k))
    counts = small.digits.unique()
    digits.set_xscale("log")
    digits.set_xticks(counts, [f"{n:,}" for n in counts])
    digits.set(title=f"fewer digits, {UNITS} units", xlabel="training digits")

    for (smoothness, k), part in table[table.task == "cut"].groupby(["smoothness", "block_size"]):
        spread(lengths, part, "length", name(k, smoothness))
    lengths.set(title=f"digits that end early, {budget:,} parameters", xlabel="rows", xticks=LENGTHS)

    for axes in (sizes, digits, lengths, noise):
        axes.set_yscale("logit")
        axes.yaxis.set_major_locator(FixedLocator(TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylabel("test accuracy")
        axes.grid(alpha=0.3)
        axes.margins(y=0.2)  # room for the legend
        axes.legend()
    figure.savefig(path, dpi=90)


def results(path: pathlib.Path, steps: int) -> pd.DataFrame:
    """What an interrupted run has written."""
    columns = [*Run._fields, "parameters", "length", "accuracy"]
    if not path.exists():
        return pd.DataFrame(columns=columns)
    table = pd.read_csv(path)
    if list(table) != columns or set(table.steps) != {steps}:
        raise ValueError(f"it is of another kind, or not of {steps} steps")
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--seeds", type=positive, help="how many, from 0 (default 5, with --quick 1)")
    parser.add_argument("--epochs", type=positive, default=2, help="of all digits; as many steps for fewer")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/should_you_untie"))
    parser.add_argument("--quick", action="store_true", help="tied and untied only: a look at it")
    return parser.parse_args()


def main() -> None:
    args = parse()
    tf.get_logger().setLevel("ERROR")  # else it warns that so many models were compiled
    data = load_digits(args.data)
    digits = len(data[0])
    seeds, sizes, few = (1, ENDS, ENDS) if args.quick else (5, BLOCK_SIZES, FEW)
    steps = args.epochs * max(1, digits // BATCH_SIZE)
    path = args.out / "results.csv"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        table = results(path, steps)
    except (OSError, ValueError) as error:
        fail(f"cannot use {path}", error)

    # All runs of a seed before the next seed's, so that after an interruption there are whole comparisons.
    runs = [run for seed in range(args.seeds or seeds) for run in plan(sizes, few, digits, steps, seed)]
    done = set(table[list(Run._fields)].itertuples(index=False, name=None))
    for number, run in enumerate(runs, 1):
        if run in done:
            continue
        found = accuracies(run, data)
        count = parameters(run.block_size, run.units)
        rows = [run._asdict() | {"parameters": count, "length": n, "accuracy": a} for n, a in found.items()]
        table = pd.DataFrame([*table.to_dict("records"), *rows])
        replace(path, functools.partial(table.to_csv, index=False, float_format="%.5g"))
        layer = f"{name(run.block_size, run.smoothness)}, {run.units} units, {run.digits:,} digits"
        print(f"{number}/{len(runs)} {run.task}: {layer}, seed {run.seed}: {found[ROWS]:.4f}", flush=True)
    replace(args.out / "results.png", lambda file: draw(table, file))
    print(f"results in {args.out}")


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command")
    main()
