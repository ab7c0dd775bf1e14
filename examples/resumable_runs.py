"""Independent runs in a pool of processes, whose table goes on after an interruption."""

import functools
import pathlib
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, as_completed
from typing import Any, NamedTuple, TypeVar

import pandas as pd
from command_line import replace

Run = TypeVar("Run", bound=NamedTuple)


def table(path: pathlib.Path, columns: list[str]) -> pd.DataFrame:
    """What an interrupted run has written."""
    if not path.exists():
        return pd.DataFrame(columns=columns)
    found = pd.read_csv(path)
    if list(found) != columns:
        raise ValueError(f"it has other columns: expected {', '.join(columns)}, received {', '.join(found)}")
    return found


def finish(
    pool: Executor,
    work: Callable[[Run], list[dict[str, Any]]],
    runs: Iterable[Run],
    results: pd.DataFrame,
    path: pathlib.Path,
) -> pd.DataFrame:
    """`results`, and for each run that is not among them the rows that `work` finds.

    Run by run, `path` gets all results. They are in one order, whichever worker is the first.
    """
    runs = list(runs)
    names = list(runs[0]._fields) if runs else []
    done = set(results[names].itertuples(index=False, name=None))
    todo = {pool.submit(work, run): run for run in runs if run not in done}
    for number, future in enumerate(as_completed(todo), 1):
        rows = [todo[future]._asdict() | row for row in future.result()]
        results = pd.DataFrame([*results.to_dict("records"), *rows]).sort_values(list(results))
        replace(path, functools.partial(results.to_csv, index=False, float_format="%.6g"))
        found = ", ".join(f"{name} {value}" for name, value in rows[-1].items())
        print(f"{number}/{len(todo)}: {found}", flush=True)
    return results
