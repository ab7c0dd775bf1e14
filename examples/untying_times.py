"""How long a training step and a prediction of each setting take, as `fit` and `predict` run by default."""

import time
from collections.abc import Callable, Iterable

import keras
import numpy as np
import pandas as pd
from digit_batches import BATCH_SIZE
from untying_settings import CLASSES, FEATURES, ROWS, network, parameters

STEPS = 20  # in a measurement
COLUMNS = ["setting", "units", "parameters", "step_ms", "prediction_ms"]
SIZES = (50, 100, 150, 200)  # from which the time of others is computed


def measured(models: Iterable[tuple[str, int]], rounds: int) -> pd.DataFrame:
    """Milliseconds a step of each (setting, units): medians over rounds in which all take their turn."""
    rng = np.random.default_rng(0)
    x = rng.random((STEPS * BATCH_SIZE, ROWS, FEATURES), "float32")
    y = rng.integers(CLASSES, size=len(x))
    contestants = {pair: _contestant(*pair, x, y) for pair in models}
    times: dict[tuple[str, int], list[tuple[float, ...]]] = {pair: [] for pair in contestants}
    for _ in range(rounds):
        for pair, calls in contestants.items():
            times[pair].append(tuple(_seconds(call) for call in calls))
    rows = []
    for (setting, units), found in times.items():
        step, prediction = 1000 / STEPS * np.median(found, axis=0)
        count = parameters(setting, units)
        rows.append((setting, units, count, step, prediction))
    return pd.DataFrame(rows, columns=COLUMNS)


def _contestant(setting: str, units: int, x: np.ndarray, y: np.ndarray) -> tuple[Callable[[], object], ...]:
    model = network(setting, units)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3, clipnorm=1.0), loss)
    calls = (
        lambda: model.fit(x, y, batch_size=BATCH_SIZE, verbose=0),
        lambda: model.predict(x, batch_size=BATCH_SIZE, verbose=0),
    )
    for call in calls:
        call()  # what is traced and compiled is not timed
    return calls


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def units_as_fast(ladder: pd.DataFrame, setting: str, reference: tuple[str, int]) -> int:
    """The hidden size with which a step of `setting` takes as long as one of `reference`, setting and units.

    Of lines in the square of the hidden size: single times differ by several percent from program to program.
    """

    def line(name: str) -> np.ndarray:
        times = ladder[ladder.setting == name]
        return np.polyfit(times.units**2, times.step_ms, 1)

    step_ms = np.polyval(line(reference[0]), reference[1] ** 2)
    units = np.arange(min(SIZES), max(SIZES) + 1)  # beyond them, nothing was measured
    return int(units[np.argmin(abs(np.polyval(line(setting), units**2) - step_ms))])
