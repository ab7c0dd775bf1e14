"""The tables and pictures of `should_you_untie.py`."""

import pathlib

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from untying_settings import ROWS, SETTINGS, SMOOTH
from untying_tasks import LENGTHS

TICKS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99]
TITLES = {"rows": "rows of digits", "noise": "rows of noise, each with a matrix of its own"}
FAMILIES = {  # of settings, by how their names begin: the colour
    "tied": "black",
    "biases": "tab:cyan",
    "kernel": "tab:blue",
    "recurrent": "tab:purple",
    "blocks": "tab:green",
    "basis": "tab:olive",
    "low": "tab:orange",
    "untied": "tab:red",
}
Rates = dict[tuple[str, str, int], float]  # by task, setting and hidden size
MARKERS = {"size": "o", "parameters": "s", "time": "^"}


def chosen(results: pd.DataFrame, rates: Rates) -> pd.DataFrame:
    """The results with the learning rate that was chosen for their task, setting and hidden size."""
    keys = zip(results.task, results.setting, results.units, strict=True)
    return results[results.rate == [rates.get(key) for key in keys]]


def comparison_table(
    results: pd.DataFrame,
    times: pd.DataFrame,
    units: dict[str, dict[str, int]],
    rates: Rates,
    steps: int,
) -> pd.DataFrame:
    """Mean accuracies over seeds and their standard errors: for each task and comparison, all settings."""
    whole = results[(results.length == ROWS) & (results.steps == steps)]
    whole = whole[whole.digits == results.digits.max()]
    whole = chosen(whole, rates)
    keys = ["task", "setting", "units", "parameters", "rate"]
    found = whole.pivot_table(index=[*keys, "seed"], columns="part", values="accuracy").groupby(keys)
    means, errors = found.mean(), found.sem()
    table = means.assign(standard_error=errors["test"]).reset_index()
    table = table.merge(times.drop(columns="parameters"), on=["setting", "units"], how="left")
    asked = [(c, name, n) for name, by in units.items() for c, n in by.items()]
    names = pd.DataFrame(asked, columns=["comparison", "setting", "units"])
    return names.merge(table, on=["setting", "units"])[["task", "comparison", *table.columns.drop("task")]]


def draw_fronts(comparisons: pd.DataFrame, path: pathlib.Path) -> None:
    """Accuracy against time and against weights. The line joins what nothing else beats in both."""
    tasks = [task for task in TITLES if task in set(comparisons.task)]
    figure = Figure(figsize=(11, 4.5 * len(tasks)), layout="constrained")
    grid = figure.subplots(len(tasks), 2, squeeze=False)
    labels = {
        "step_ms": ("time of a training step (ms)", "linear"),
        "parameters": ("parameters", "log"),
    }
    for row, task in zip(grid, tasks, strict=True):
        points = comparisons[comparisons.task == task]
        for axes, (x, (label, scale)) in zip(row, labels.items(), strict=True):
            for (setting, comparison), part in points.groupby(["setting", "comparison"], sort=False):
                colour = FAMILIES[setting.split()[0]]
                name = setting if comparison == "size" else None
                axes.errorbar(
                    part[x], part.test, part.standard_error, fmt=MARKERS[comparison], color=colour, label=name
                )
            front = points.sort_values([x, "test"])
            front = front[front.test >= front.test.cummax()]
            axes.step(front[x], front.test, where="post", color="grey", linewidth=1, zorder=0)
            axes.set(title=TITLES[task], xlabel=label, xscale=scale)
            _accuracy_axis(axes)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=90)


def draw_by_data(results: pd.DataFrame, units: int, rates: Rates, path: pathlib.Path) -> None:
    """Accuracy by the number of digits, and by the length of the sequences."""
    test = results[(results.part == "test") & (results.steps == results.steps.min())]
    rows = chosen(test[(test.task == "rows") & (test.units == units)], rates)
    cut = test[test.task == "cut"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    digits, lengths = figure.subplots(1, 2)
    for setting in (name for name in (*SETTINGS, SMOOTH) if name in set(cut.setting)):
        _spread(lengths, cut[cut.setting == setting], "length", setting)
        if setting != SMOOTH:
            _spread(digits, rows[rows.setting == setting], "digits", setting)
    counts = sorted(rows.digits.unique())
    digits.set(title=f"fewer digits, {units} units", xlabel="training digits", xscale="log")
    digits.set_xticks(counts, [f"{n:,}" for n in counts])
    digits.xaxis.set_minor_locator(NullLocator())
    lengths.set(title="digits that end early", xlabel="rows", xticks=LENGTHS)
    for axes in (digits, lengths):
        _accuracy_axis(axes)
        axes.legend()
    figure.savefig(path, dpi=90)


def _spread(axes: Axes, table: pd.DataFrame, x: str, label: str) -> None:
    """The mean over seeds, from the lowest to the highest."""
    values = table.groupby(x).accuracy.agg(["min", "mean", "max"])
    bars = [values["mean"] - values["min"], values["max"] - values["mean"]]
    axes.errorbar(values.index, values["mean"], bars, fmt="o-", capsize=3, markersize=4, label=label)


def _accuracy_axis(axes: Axes) -> None:
    axes.set_yscale("logit")
    axes.yaxis.set_major_locator(FixedLocator(TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.3)
    axes.margins(y=0.2)  # room for the legend
