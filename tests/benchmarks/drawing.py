"""The charts of the performance page, from the measurements beside them.

    python tests/benchmarks/drawing.py docs/performance  # speed.csv, family.csv, growth.csv

Each chart is 7.2 inches wide, so that its text is as large as the page's.
"""

import csv
import pathlib
import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from problems import NAMES

WIDTH = 7.2
SLOW_FIRST_CALL = 20.0  # seconds: beyond, a contestant is shown and not counted
LONGEST_BAR = 2.5
# How a contestant's name begins: what a bar is called, and the colour of its kind.
BARS = {
    "this layer, TensorFlow": ("this layer, TensorFlow", "tab:blue"),
    "this layer, JAX": ("this layer, JAX", "tab:blue"),
    "this layer, torch": ("this layer, torch", "tab:blue"),
    "variable per timestep": ("variable per timestep", "tab:orange"),
    "list of cells": ("list of cells", "tab:orange"),
    "jax.lax.scan": ("jax.lax.scan", "tab:orange"),
    "torch parameters": ("torch parameters", "tab:orange"),
    "tied": ("tied layer of Keras", "tab:green"),
    "products alone": ("products alone", "darkgrey"),
}
KINDS = {
    "this layer": "tab:blue",
    "untied, by hand": "tab:orange",
    "tied": "tab:green",
    "matrix products alone": "darkgrey",
}
LINES: dict[str, dict[str, Any]] = {
    "this layer, TensorFlow XLA": {"color": "tab:blue", "marker": "o"},
    "this layer, TensorFlow": {"color": "tab:blue", "marker": "s", "linestyle": "--"},
    "this layer, JAX": {"color": "tab:blue", "marker": "^", "linestyle": ":"},
    "jax.lax.scan": {"color": "tab:orange", "marker": "^", "linestyle": ":"},
    "tied SimpleRNN, TensorFlow XLA": {"color": "tab:green", "marker": "o"},
    "tied SimpleRNN, TensorFlow": {"color": "tab:green", "marker": "s", "linestyle": "--"},
    "products alone": {"color": "darkgrey", "marker": "d"},
}

Row = dict[str, str]


def read(path: pathlib.Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def counted(row: Row) -> bool:
    return float(row["first_s"]) <= SLOW_FIRST_CALL


def milliseconds(row: Row) -> float:
    return float(row["step_ms"])


def bar(row: Row) -> str:
    return next(begin for begin in BARS if row["contestant"].startswith(begin))


def draw_speed(source: pathlib.Path, path: pathlib.Path) -> None:
    """Training steps by shape: the fastest form of each contestant over this layer's fastest."""
    rows = read(source)
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    bars = sorted({bar(row) for row in rows}, key=list(BARS).index)
    lines = (len(shapes) + 1) // 2
    figure = Figure(figsize=(WIDTH, 0.6 + lines * (0.55 + 0.2 * len(bars))), layout="constrained")
    grid = figure.subplots(lines, 2, sharex=True, sharey=True, squeeze=False)
    for axes, shape in zip(grid.flat, shapes, strict=False):
        draw_shape(axes, [row for row in rows if row["shape"] == shape], bars)
        axes.set_title(NAMES.get(shape, shape), fontsize=10)
    for axes in grid.flat[len(shapes) :]:
        axes.set_axis_off()
    axes = grid[0, 0]
    axes.set_yticks(range(len(bars)), [BARS[begin][0] for begin in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, LONGEST_BAR + 0.4)
    figure.supxlabel("time of a training step, fastest form of this layer = 1", fontsize=9)
    handles = [Patch(color=colour, label=kind) for kind, colour in KINDS.items()]
    handles.append(Patch(facecolor="white", edgecolor="grey", hatch="////", label="compiles for over 20 s"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


def draw_shape(axes: Axes, rows: list[Row], bars: list[str]) -> None:
    unit = min(milliseconds(row) for row in rows if row["kind"] == "ours")
    for position, begin in enumerate(bars):
        forms = [row for row in rows if bar(row) == begin]
        if not forms:
            axes.text(0.04, position, "not timed", va="center", fontsize=8, color="grey")
            continue
        form = min(forms, key=lambda row: (not counted(row), milliseconds(row)))
        ratio, colour = milliseconds(form) / unit, BARS[begin][1]
        fill: dict[str, Any] = (
            {"color": colour} if counted(form) else {"color": "white", "ec": colour, "hatch": "////"}
        )
        axes.barh(position, min(ratio, LONGEST_BAR), **fill)
        label = f"{ratio:.2f}" if ratio <= LONGEST_BAR else f"{ratio:.1f} …"
        box = {"color": "white", "pad": 1}  # over the line at 1
        axes.text(min(ratio, LONGEST_BAR) + 0.04, position, label, va="center", fontsize=8, bbox=box)
    axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def draw_growth(source: pathlib.Path, path: pathlib.Path) -> None:
    """Milliseconds of a training step along each sweep."""
    rows = read(source)
    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    grid = figure.subplots(1, len(sweeps), squeeze=False)
    for axes, sweep in zip(grid.flat, sweeps, strict=True):
        for name in dict.fromkeys(row["contestant"] for row in rows):
            points = [row for row in rows if (row["sweep"], row["contestant"]) == (sweep, name)]
            sizes = [int(row["size"]) for row in points]
            times = [milliseconds(row) for row in points]
            axes.loglog(sizes, times, label=name, markersize=4, **LINES[name])
            axes.set_xticks(sizes, map(str, sizes))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.tick_params(labelsize=8)
        axes.set_xlabel(sweep, fontsize=9)
    grid[0, 0].set_ylabel("training step, ms", fontsize=9)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)


def main(folder: pathlib.Path) -> None:
    draw_speed(folder / "speed.csv", folder / "speed.png")
    draw_speed(folder / "family.csv", folder / "family.png")
    draw_growth(folder / "growth.csv", folder / "growth.png")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
