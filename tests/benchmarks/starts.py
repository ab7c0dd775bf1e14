"""What the call argument `start` costs: `fit` of sequences that begin at any hour of the day.

    python tests/benchmarks/starts.py [--rounds 11] [--smoke]

An `UntiedLSTM` with `Periodic(24)` over 48 hours: without `start`, with one for the batch, and with one for
each sample, which computes 71 timesteps. Prints milliseconds of a training step and their ratio, medians over
rounds.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from untied_rnn import UntiedLSTM
from untied_rnn.sharing import Periodic

STARTS = ("none", "one for the batch", "one for each sample")
HOURS, FEATURES, UNITS, BATCH, STEPS = 48, 8, 64, 128, 20


class Forecast(keras.Model):
    """Its inputs are sequences and their starts, of which it uses what `starts` says."""

    def __init__(self, starts: str, timesteps: int):
        super().__init__()
        self.starts = starts
        self.rnn = UntiedLSTM(UNITS, sharing=Periodic(timesteps // 2))
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        sequences, starts = inputs
        start = dict(zip(STARTS, (None, starts[0], starts), strict=True))[self.starts]
        return self.head(self.rnn(sequences, start=start))


def seconds(model: keras.Model, inputs: list[np.ndarray]) -> float:
    """Of a training step."""
    start = time.perf_counter()
    model.fit(inputs, np.zeros((len(inputs[0]), 1)), batch_size=BATCH, shuffle=False, verbose=0)
    return (time.perf_counter() - start) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--smoke", action="store_true", help="few timesteps, one round, to see that it runs")
    args = parser.parse_args()
    timesteps, rounds = (4, 1) if args.smoke else (HOURS, args.rounds)
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    sequences = rng.random((STEPS * BATCH, timesteps, FEATURES), dtype="float32")
    inputs = [sequences, rng.integers(timesteps // 2, size=len(sequences))]
    models = {name: Forecast(name, timesteps) for name in STARTS}
    for model in models.values():
        model.compile("adam", "mse")
        seconds(model, inputs)  # what is traced and compiled is not timed
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            times[name].append(seconds(model, inputs))
    print("| `start` | step, ms | over none |\n| --- | --- | --- |")
    for name, found in times.items():
        ratio = np.median(np.divide(found, times["none"]))
        print(f"| {name} | {1000 * np.median(found):.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
