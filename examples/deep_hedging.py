"""Hedges a call option with a network that has its own weights for every day (deep hedging).

    python examples/deep_hedging.py            # three seeds each, some ten minutes on two cores
    python examples/deep_hedging.py --quick    # one seed each, less trained, under a minute

A short European call is hedged on 30 days, without and with transaction costs, so that the entropic risk is
least: by an untied layer, and by one network that all days share, with and without the time as its input.
Compared with Black-Scholes and with a band of no trade around it. Writes hedges.csv, summary.csv, deltas.png
and the models of the first seed to `--out`.

Buehler, Gonon, Teichmann and Wood, 2019, Deep hedging (https://arxiv.org/abs/1802.03042)
"""

import argparse
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
from command_line import end_on_interrupt, fail, positive, replace, verbosity
from keras import ops
from matplotlib.figure import Figure

from untied_rnn import UntiedSimpleRNN

DAYS, DAY = 30, 1 / 365
SPOT = STRIKE = 100.0
VOLATILITY = 0.2
RISK_AVERSION = 1.0
COST_RATES = (0.0, 0.002)  # of the value traded
UNITS, BATCH_SIZE, STEPS = 16, 1024, 100  # steps of an epoch
LEFT = DAY * np.arange(DAYS, 0, -1)  # the time to maturity on each day, in years
NETWORKS: dict[str, dict[str, Any]] = {
    "own weights": {"sharing": "untied", "time": False},
    "shared with time": {"sharing": "tied", "time": True},
    "shared without time": {"sharing": "tied", "time": False},
}


def simulate(paths: int, rng: np.random.Generator) -> np.ndarray:
    """Prices `(paths, DAYS + 1)` of geometric Brownian motion without drift."""
    steps = VOLATILITY * np.sqrt(DAY) * rng.standard_normal((paths, DAYS)) - VOLATILITY**2 * DAY / 2
    return SPOT * np.exp(np.pad(np.cumsum(steps, axis=1), ((0, 0), (1, 0))))


def black_scholes(prices: Any, left: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Price, delta and gamma of the call with the time `left`."""
    deviation = VOLATILITY * np.sqrt(left)
    d1 = np.log(prices / STRIKE) / deviation + deviation / 2
    below_d1, below_d2 = (ops.convert_to_numpy(1 + ops.erf(d / np.sqrt(2))) / 2 for d in (d1, d1 - deviation))
    gamma = np.exp(-(d1**2) / 2) / (np.sqrt(2 * np.pi) * prices * deviation)
    return prices * below_d1 - STRIKE * below_d2, below_d1, gamma


def cost(prices: Any, deltas: Any, rate: float) -> Any:
    """What each path pays: the position is bought from nothing, and sold again at maturity."""
    trades = ops.diff(ops.pad(deltas, ((0, 0), (1, 1))), axis=1)
    return rate * ops.sum(prices * ops.abs(trades), axis=1)


def profit(prices: Any, deltas: Any, rate: float) -> Any:
    """Of the seller on each path, without the premium: the gains of the hedge less payoff and costs."""
    gains = ops.sum(deltas * ops.diff(prices, axis=1), axis=1)
    return gains - ops.relu(prices[:, -1] - STRIKE) - cost(prices, deltas, rate)


def entropic_risk(profits: Any) -> Any:
    """`1/a log E exp(-a profit)`: the premium with which selling is as good as not selling."""
    count = ops.cast(ops.size(profits), profits.dtype)
    return (ops.logsumexp(-RISK_AVERSION * profits) - ops.log(count)) / RISK_AVERSION


def inputs(prices: np.ndarray, time: bool) -> np.ndarray:
    """Of each day the log-moneyness; with `time` also over the root of the time left, and that time."""
    moneyness = np.log(prices[:, :-1] / STRIKE) / VOLATILITY
    features = [moneyness / np.sqrt(LEFT[0])]
    if time:
        features += [moneyness / np.sqrt(LEFT), np.broadcast_to(LEFT / LEFT[0], moneyness.shape)]
    return np.stack(features, axis=-1).astype("float32")


def batches(time: bool, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Fresh paths for every step: there is nothing to overfit."""
    rng = np.random.default_rng([1, seed])  # the test paths come from seed 0 alone
    while True:
        prices = simulate(BATCH_SIZE, rng)
        yield inputs(prices, time), prices.astype("float32")


def network(sharing: str, time: bool) -> keras.Model:
    """From the inputs to the positions. What was held before, the state knows."""
    features = keras.Input((DAYS, 3 if time else 1))
    layer = UntiedSimpleRNN(
        UNITS,
        activation="relu",  # with costs the best position is piecewise linear in the one before
        sharing=sharing,
        output_units=1,
        output_activation="sigmoid",  # a call's delta is between 0 and 1
        return_sequences=True,
    )
    return keras.Model(features, keras.layers.Reshape((DAYS,))(layer(features)))


def trained(sharing: str, time: bool, rate: float, seed: int, epochs: int) -> keras.Model:
    keras.utils.set_random_seed(seed)
    model = network(sharing, time)
    # `clipnorm` shortens the gradients of all days together; the measured results are of that.
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-2, epochs * STEPS), clipnorm=1.0)

    def loss(prices: Any, deltas: Any) -> Any:
        return entropic_risk(profit(prices, deltas, rate))

    model.compile(adam, loss, steps_per_execution=STEPS)  # a step takes no longer than a turn through Python
    stream = batches(time, seed)
    model.fit(stream, steps_per_epoch=STEPS, epochs=epochs, shuffle=False, verbose=verbosity())
    return model


def no_trade_band(prices: np.ndarray, rate: float) -> np.ndarray:
    """The asymptotically best hedge for small costs (Whalley and Wilmott, 1997): within a band, no trade."""
    _, delta, gamma = black_scholes(prices[:, :-1], LEFT)
    width = (3 * rate * prices[:, :-1] * gamma**2 / (2 * RISK_AVERSION)) ** (1 / 3)
    position, positions = np.zeros(len(prices)), []
    for day in range(DAYS):
        position = np.clip(position, delta[:, day] - width[:, day], delta[:, day] + width[:, day])
        positions.append(position)
    return np.stack(positions, axis=1)


def measures(prices: np.ndarray, deltas: np.ndarray, rate: float) -> dict[str, float]:
    profits = profit(prices, deltas, rate)
    _, reference, _ = black_scholes(prices[:, :-1], LEFT)
    return {
        "price": float(entropic_risk(profits)),
        "std": float(ops.std(profits)),
        "cost": float(ops.mean(cost(prices, deltas, rate))),
        "delta_difference": float(np.mean(np.abs(deltas - reference))),
    }


def formulas() -> dict[str, float]:
    """The price of continuous hedging, and what hedging on `DAYS` days leaves (Derman and Kamal, 1999)."""
    price, _, gamma = black_scholes(SPOT, LEFT[0])
    vega = SPOT**2 * gamma * VOLATILITY * LEFT[0]
    return {"price": float(price), "std": float(np.sqrt(np.pi / 4 / DAYS) * vega * VOLATILITY)}


def draw(prices: np.ndarray, deltas: dict[tuple[float, str], np.ndarray], path: pathlib.Path) -> None:
    """Positions as points, Black-Scholes' delta as a line, and on the right how far they are apart."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    rows = dict(zip(COST_RATES, figure.subplots(len(COST_RATES), 4), strict=True))
    spots = np.linspace(85, 115, 200)
    _, reference, _ = black_scholes(prices[:, :-1], LEFT)
    for (rate, name), positions in deltas.items():
        *days, distance = rows[rate]
        for ax, day in zip(days, (1, 15, 29), strict=True):
            ax.plot(prices[:100, day], positions[:100, day], ".", markersize=3, alpha=0.7)
            ax.set(
                title=f"day {day}",
                xlabel="spot",
                ylabel=f"delta, costs {rate:.1%}",
                xlim=(85, 115),
            )
        distance.plot(np.abs(positions - reference).mean(axis=0), label=name)
        distance.set(title="mean distance to the line", xlabel="day")
    for *days, distance in rows.values():
        for ax, day in zip(days, (1, 15, 29), strict=True):
            ax.plot(spots, black_scholes(spots, LEFT[day])[1], "k-", linewidth=0.8)
        distance.set_ylim(bottom=0)
        distance.legend()
    figure.savefig(path, dpi=100)


def summary(hedges: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds, and for the price the lowest and the highest."""
    groups = hedges.groupby(["rate", "hedge"], sort=False)
    means = (
        groups[["price", "std", "cost", "delta_difference", "parameters"]]
        .mean()
        .astype({"parameters": "Int64"})
    )
    return means.assign(lowest_price=groups.price.min(), highest_price=groups.price.max())


def run(seeds: int, epochs: int, paths: int, out: pathlib.Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    prices = simulate(paths, np.random.default_rng(0))
    rows: list[dict[str, Any]] = [{"rate": 0.0, "hedge": "formulas"} | formulas()]
    deltas = {}
    for rate in COST_RATES:
        classics = {"Black-Scholes": black_scholes(prices[:, :-1], LEFT)[1]}
        if rate:  # without costs the band has no width
            classics["no-trade band"] = no_trade_band(prices, rate)
        for name, positions in classics.items():
            rows.append({"rate": rate, "hedge": name} | measures(prices, positions, rate))
        for name, settings in NETWORKS.items():
            for seed in range(seeds):
                print(f"\n{name}, costs {rate:.1%}, seed {seed}")
                model = trained(**settings, rate=rate, seed=seed, epochs=epochs)
                features = inputs(prices, settings["time"])
                positions = model.predict(features, batch_size=8192, verbose=0).astype("float64")
                row = {"rate": rate, "hedge": name, "seed": seed, "parameters": model.count_params()}
                rows.append(row | measures(prices, positions, rate))
                if seed == 0:
                    deltas[rate, name] = positions
                    replace(out / f"{name.replace(' ', '_')}_{rate}.keras", model.save)
    hedges = pd.DataFrame(rows).astype({"seed": "Int64", "parameters": "Int64"})  # or NaN makes them floats
    table = summary(hedges)
    replace(out / "hedges.csv", lambda path: hedges.to_csv(path, index=False, float_format="%.5f"))
    replace(out / "summary.csv", lambda path: table.to_csv(path, float_format="%.5f"))
    replace(out / "deltas.png", lambda path: draw(prices, deltas, path))
    print(f"\n{table.to_string(float_format='{:.4f}'.format, na_rep='')}\nresults in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=positive, help="train with the seeds 0, 1, ... (default 3)")
    parser.add_argument("--quick", action="store_true", help="one seed, fewer steps and test paths")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/deep_hedging"))
    args = parser.parse_args()
    logging.getLogger("tensorflow").setLevel("ERROR")  # no advice that each of the models is compiled anew
    try:
        if args.quick:
            run(args.seeds or 1, 3, 2**15, args.out)
        else:
            run(args.seeds or 3, 20, 2**17, args.out)
    except OSError as error:
        fail(f"cannot use --out {args.out}", error)


if __name__ == "__main__":
    end_on_interrupt("interrupted: no table was written")
    main()
