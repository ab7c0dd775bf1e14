"""Compares tied, untied and what lies between, to see which weights should change along time, and how much.

    python examples/should_you_untie.py --quick         # three settings, 5,000 bundled digits, no network
    python examples/should_you_untie.py --data mnist    # everything, all 70,000

One layer and a Dense head, with the settings of `untying_settings.py` on the tasks of `untying_tasks.py`:

    rows, noise    all settings: at the same hidden size, number of parameters and time of a training step;
                   the first seed tries three learning rates for each, and held-out sequences choose one
                   three of them with twice as many steps, to see how far training has converged
    rows           a few settings by the number of digits
    cut            a few settings at the same number of parameters, by the length of the sequences

Writes ladder.csv and times.csv, the times of models, results.csv after each run, and two pictures to `--out`,
and prints the table. The same command goes on after an interruption.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pandas as pd
import tensorflow as tf
from command_line import end_on_interrupt, fail, positive, replace
from resumable_runs import finish, table
from untying_pictures import Rates, comparison_table, draw_by_data, draw_fronts
from untying_settings import SETTINGS, SMOOTH, parameters, restart, trainable, units_for
from untying_tasks import digits, testing, training
from untying_times import COLUMNS as TIME_COLUMNS
from untying_times import SIZES, measured, units_as_fast

UNITS, BUDGET = 50, 40_000
AS_FAST_AS = ("untied", 100)  # the setting and hidden size that give the time of a step
FEW = ("tied", "blocks of 7", "low rank 4", "untied")  # for all but the first comparisons
ENDS = ("tied", "low rank 4", "untied")
FEWER_DIGITS = (500, 2000, 8000)
RATES = (1e-3, 2e-3, 4e-3)
Sizes = dict[str, dict[str, int]]  # hidden sizes by setting and comparison


class Run(NamedTuple):
    """What a result is a function of. The seed draws digits, their lengths, weights and batches."""

    task: str
    setting: str
    units: int
    digits: int
    rate: float
    steps: int
    seed: int


COLUMNS = [*Run._fields, "parameters", "part", "length", "accuracy"]


def sizes(setting: str, ladder: pd.DataFrame) -> dict[str, int]:
    """The hidden size of `setting` in each comparison."""
    return {
        "size": UNITS,
        "parameters": units_for(setting, BUDGET),
        "time": units_as_fast(ladder, setting, AS_FAST_AS),
    }


def tuning(
    settings: tuple[str, ...], units: Sizes, rates: tuple[float, ...], count: int, steps: int
) -> list[Run]:
    """What the first seed tries to choose learning rates."""
    return [
        Run(task, name, n, count, rate, steps, seed=0)
        for task in ("rows", "noise")
        for name in settings
        for n in dict.fromkeys(units[name].values())
        for rate in rates
    ]


def chosen_rates(results: pd.DataFrame, steps: int) -> Rates:
    """The learning rate with the best accuracy on held-out sequences."""
    tried = results[(results.part == "held out") & (results.seed == 0) & (results.steps == steps)]
    tried = tried[(tried.task != "cut") & (tried.digits == tried.digits.max())]
    best = tried.loc[tried.groupby(["task", "setting", "units"]).accuracy.idxmax()]
    return {(run.task, run.setting, run.units): run.rate for run in best.itertuples()}


def plan(
    settings: tuple[str, ...],
    units: Sizes,
    rates: Rates,
    count: int,
    steps: int,
    seed: int,
) -> list[Run]:
    def runs(task: str, names: tuple[str, ...], comparison: str, **changes: Any) -> Iterator[Run]:
        for name in names:
            like = name if name in settings else "untied"
            n = units[like][comparison]
            rate = rates["noise" if task == "noise" else "rows", like, n]
            yield Run(task, name, n, count, rate, steps, seed)._replace(**changes)

    few = tuple(name for name in FEW if name in settings)
    planned = [
        run
        for task in ("rows", "noise")
        for comparison in ("size", "parameters", "time")
        for run in runs(task, settings, comparison)
    ]
    planned += runs("cut", (*few, SMOOTH), "parameters")
    for n in FEWER_DIGITS:
        planned += runs("rows", few, "size", digits=min(n, count))
    for task in ("rows", "noise"):
        planned += runs(task, ENDS, "size", steps=2 * steps)
    return list(dict.fromkeys(planned))  # each once


def accuracies(run: Run, source: str) -> list[dict[str, Any]]:
    """Trains; returns the accuracy on held-out and on test sequences, by their length."""
    model = trainable(run.setting, run.units, run.task == "cut", run.rate, run.steps)
    restart(model, run.seed)
    stream = training(run.task, source, run.digits, run.seed)
    model.fit(stream, steps_per_epoch=run.steps, shuffle=False, verbose=0)
    count = parameters(run.setting, run.units)
    rows = []
    for (part, length), (x, y) in testing(run.task, source).items():
        accuracy = model.evaluate(x, y, batch_size=1000, verbose=0)[1]
        rows.append({"parameters": count, "part": part, "length": length, "accuracy": accuracy})
    return rows


def one_thread() -> None:
    """Of a worker: there are as many as cores, and products this small gain little from a second thread."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.get_logger().setLevel("ERROR")  # else it warns that so many models were compiled


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--seeds", type=positive, help="how many, from 0 (default 5, with --quick 1)")
    parser.add_argument(
        "--steps", type=positive, help="of training, of 128 sequences (default 4000, quick 200)"
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/should_you_untie"))
    parser.add_argument("--quick", action="store_true", help="three settings only: a look at it")
    return parser.parse_args()


def main() -> None:
    args = parse()
    settings = ENDS if args.quick else tuple(SETTINGS)
    steps = args.steps or (200 if args.quick else 4000)
    path = args.out / "results.csv"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        results = table(path, COLUMNS)
        ladder = table(args.out / "ladder.csv", TIME_COLUMNS)
        times = table(args.out / "times.csv", TIME_COLUMNS)
    except (OSError, ValueError) as error:
        fail(f"cannot use {args.out}", error)

    def timed(models: list[tuple[str, int]], path: pathlib.Path, programs: int = 1) -> pd.DataFrame:
        print(f"measures the times of {len(models)} models", flush=True)
        found = pd.concat(measured(models, rounds=1 if args.quick else 9) for _ in range(programs))
        replace(path, functools.partial(found.to_csv, index=False, float_format="%.5g"))
        return found

    if ladder.empty:
        models = [(name, n) for name in settings for n in SIZES]
        ladder = timed(models, args.out / "ladder.csv", programs=1 if args.quick else 2)
    units = {name: sizes(name, ladder) for name in settings}
    if times.empty:
        models = [(name, n) for name in settings for n in dict.fromkeys(units[name].values())]
        times = timed(models, args.out / "times.csv")
    count = len(digits(args.data).train[0])
    seeds = range(args.seeds or (1 if args.quick else 5))

    work = functools.partial(accuracies, source=args.data)
    spawn = multiprocessing.get_context("spawn")  # a fork of TensorFlow's threads hangs
    with ProcessPoolExecutor(args.workers, mp_context=spawn, initializer=one_thread) as pool:
        tried = tuning(settings, units, RATES[-1:] if args.quick else RATES, count, steps)
        results = finish(pool, work, tried, results, path)
        rates = chosen_rates(results, steps)
        # All runs of a seed come before the next seed, so that an interruption leaves whole comparisons.
        planned = [run for seed in seeds for run in plan(settings, units, rates, count, steps, seed)]
        results = finish(pool, work, planned, results, path)
    comparisons = comparison_table(results, times, units, rates, steps)
    print(comparisons.to_string(index=False))
    replace(args.out / "fronts.png", lambda file: draw_fronts(comparisons, file))
    replace(args.out / "by_data.png", lambda file: draw_by_data(results, UNITS, rates, file))
    print(f"results in {args.out}")


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command")
    main()
