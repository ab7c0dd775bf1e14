"""Compares what the steps of LISTA should share: the cells of `lista_cells.py` at the same training budget.

    python examples/lista_compare.py --quick     # two cells, one seed, minutes
    python examples/lista_compare.py             # all cells, two budgets, 5 seeds

Each seed has its own dictionary of 62 measurements of 125 coefficients. The first seed tries five learning
rates for each cell and budget, and held-out codes choose one. Writes compare.csv after each run to `--out`,
and prints the table. The same command goes on after an interruption.
"""

import argparse
import math
import multiprocessing
import os
import pathlib
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import keras
import pandas as pd
from command_line import end_on_interrupt, fail, positive
from lista import LAM, FreshCodes, dictionary, log_error, nmse, sparse_codes, unfolded
from lista_cells import CELLS
from resumable_runs import finish, table

UNITS, STEPS = 125, 16
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)
CODES = 1000  # that are held out, and to test on


class Run(NamedTuple):
    """What a result is a function of. The seed draws the dictionary, the codes and the batches."""

    cell: str
    epochs: int
    rate: float
    seed: int


COLUMNS = [*Run._fields, "parameters", "held out", "test"]


def errors(run: Run) -> list[dict[str, Any]]:
    """Trains; returns the error after the last step in decibels."""
    a = dictionary(UNITS // 2, UNITS, run.seed)
    keras.utils.set_random_seed(run.seed)
    model = unfolded(a, LAM, STEPS, run.cell)
    fresh = FreshCodes(a, run.seed)
    schedule = keras.optimizers.schedules.CosineDecay(run.rate, run.epochs * len(fresh))
    model.compile(keras.optimizers.Adam(schedule), log_error(0.8), jit_compile=True)
    model.fit(fresh, epochs=run.epochs, shuffle=False, verbose=0)
    found: dict[str, Any] = {"parameters": sum(math.prod(weight.shape) for weight in model.trainable_weights)}
    for part, stream in (("held out", 3), ("test", 2)):
        codes = sparse_codes(CODES, UNITS, [run.seed, stream])
        found[part] = nmse(codes, model.predict(codes @ a.T, batch_size=CODES, verbose=0))[-1]
    return [found]


def best_rate(results: pd.DataFrame, cell: str, epochs: int) -> float:
    """The learning rate with which the first seed has the lowest error on codes that are held out."""
    tried = results[(results.cell == cell) & (results.epochs == epochs) & (results.seed == 0)]
    return tried.loc[tried["held out"].idxmin(), "rate"]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Errors on test codes of each cell with its learning rate: means over seeds and standard errors."""
    rows = []
    for (cell, epochs), part in results.groupby(["cell", "epochs"]):
        rate = best_rate(results, cell, epochs)
        test = part[part.rate == rate].test
        count = part.parameters.iloc[0]
        rows.append((CELLS[cell][0], count, 1000 * epochs, rate, test.mean(), test.sem(), len(test)))
    columns = ["cell", "trained parameters", "batches", "rate", "error (dB)", "standard error", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=positive, help="how many, from 0 (default 5, with --quick 1)")
    parser.add_argument("--epochs", type=positive, nargs="+", help="of 1,000 batches (default 2 8, quick 1)")
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes (default: cores)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/lista_compare"))
    parser.add_argument("--quick", action="store_true", help="lista and tied only, one rate: a look at it")
    return parser.parse_args()


def main() -> None:
    args = parse()
    cells = ("lista", "tied") if args.quick else tuple(CELLS)
    rates = RATES[1:2] if args.quick else RATES
    budgets = args.epochs or ([1] if args.quick else [2, 8])
    seeds = range(args.seeds or (1 if args.quick else 5))
    path = args.out / "compare.csv"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        results = table(path, COLUMNS)
    except (OSError, ValueError) as error:
        fail(f"cannot use {path}", error)

    spawn = multiprocessing.get_context("spawn")  # a fork of the backends' threads hangs
    with ProcessPoolExecutor(args.workers, mp_context=spawn) as pool:
        tried = [Run(cell, n, rate, 0) for n in budgets for cell in cells for rate in rates]
        results = finish(pool, errors, tried, results, path)
        chosen = {(cell, n): best_rate(results, cell, n) for cell in cells for n in budgets}
        planned = [Run(cell, n, rate, seed) for seed in seeds[1:] for (cell, n), rate in chosen.items()]
        results = finish(pool, errors, planned, results, path)
    print(summary(results).round({"error (dB)": 2, "standard error": 2}).to_string(index=False))
    print(f"results in {path}")


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command")
    main()
