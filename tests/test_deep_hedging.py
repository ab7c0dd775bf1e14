"""The example of deep hedging: its mathematics against other computations, then as a user runs it."""

import csv
import sys

import keras
import numpy as np
import pytest
from conftest import BACKEND

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[examples]`")
pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)

import deep_hedging as example  # noqa: E402 (what it needs is looked for first)

RATE = 0.002


@pytest.fixture(scope="module")
def prices():
    return example.simulate(2**15, np.random.default_rng(0))


def random_deltas(count):
    return np.random.default_rng(1).random((count, example.DAYS))


def integrated(spot, left):
    """The call's price: its payoff times the density of the normal log-price."""
    z = np.linspace(-10, 10, 400_001)
    deviation = example.VOLATILITY * np.sqrt(left)
    payoff = np.maximum(spot * np.exp(deviation * z - deviation**2 / 2) - example.STRIKE, 0)
    return np.sum(payoff * np.exp(-(z**2) / 2)) * (z[1] - z[0]) / np.sqrt(2 * np.pi)


@pytest.mark.parametrize("spot", [92.0, 100.0, 103.0])
@pytest.mark.parametrize("days", [1, 30])
def test_black_scholes_is_the_integral_of_the_payoff(spot, days):
    left, h = days * example.DAY, 0.05
    price, delta, gamma = example.black_scholes(spot, left)
    below, here, above = (integrated(s, left) for s in (spot - h, spot, spot + h))
    assert price == pytest.approx(here, abs=1e-7)
    assert delta == pytest.approx((above - below) / (2 * h), abs=1e-3)
    assert gamma == pytest.approx((above - 2 * here + below) / h**2, abs=2e-3)


def test_prices_are_a_martingale_of_the_right_variance(prices):
    count = len(prices)
    assert prices.shape == (count, example.DAYS + 1)
    assert (prices[:, 0] == example.SPOT).all()
    errors = (prices[:, 1:].mean(axis=0) - example.SPOT) / (prices[:, 1:].std(axis=0) / np.sqrt(count))
    assert np.abs(errors).max() < 4
    returns = np.diff(np.log(prices), axis=1)
    variances = returns.var(axis=0) / (example.VOLATILITY**2 * example.DAY)
    assert np.abs(variances - 1).max() < 5 * np.sqrt(2 / count)
    correlations = np.corrcoef(returns.T) - np.eye(example.DAYS)
    assert np.abs(correlations).max() < 5 / np.sqrt(count)


def test_prices_are_a_function_of_the_seed():
    def first(seed):
        return next(example.batches(False, seed))[1]

    np.testing.assert_array_equal(first(0), first(0))
    tests = example.simulate(example.BATCH_SIZE, np.random.default_rng(0)).astype("float32")
    others = [first(0), first(1), tests]
    assert len({prices.tobytes() for prices in others}) == len(others)


@pytest.mark.parametrize("rate", [0.0, RATE])
def test_profit_is_that_of_a_cash_account(prices, rate):
    prices, deltas = prices[:50], random_deltas(50)
    expected = []
    for path, positions in zip(prices, deltas, strict=True):
        cash, held = 0.0, 0.0
        for price, wanted in zip(path, [*positions, 0.0], strict=True):
            cash -= (wanted - held) * price + rate * abs(wanted - held) * price
            held = wanted
        expected.append(cash - max(path[-1] - example.STRIKE, 0))
    np.testing.assert_allclose(example.profit(prices, deltas, rate), expected, rtol=1e-11, atol=1e-11)


def test_risk_is_the_formula_also_where_it_would_overflow():
    profits = np.random.default_rng(2).normal(size=1000)
    a = example.RISK_AVERSION
    formula = np.log(np.mean(np.exp(-a * profits))) / a
    assert float(example.entropic_risk(profits)) == pytest.approx(formula, rel=1e-12)
    assert float(example.entropic_risk(profits - 5000)) == pytest.approx(formula + 5000, rel=1e-12)


def by_hand(layer, inputs):
    """The page's loop: positions from the weights of each day."""
    state, deltas = np.zeros(layer.units), []
    for day, x in enumerate(inputs):
        w = layer.weights_at(day)
        state = np.maximum(x @ w["kernel"] + state @ w["recurrent_kernel"] + w["bias"], 0)
        deltas.append(1 / (1 + np.exp(-(state @ w["output_kernel"] + w["output_bias"]))))
    return np.concatenate(deltas)


@pytest.mark.parametrize("name", ["own weights", "shared with time"])
def test_positions_know_no_later_price(prices, name):
    model = example.network(**example.NETWORKS[name])
    time = example.NETWORKS[name]["time"]
    paths = prices[:2].copy()
    paths[1, :16] = paths[0, :16]  # the same until day 15, then another
    features = example.inputs(paths, time)
    deltas = keras.ops.convert_to_numpy(model(features))
    assert deltas.shape == (2, example.DAYS)
    np.testing.assert_array_equal(deltas[0, :16], deltas[1, :16])
    assert (deltas[0, 16:] != deltas[1, 16:]).all()
    np.testing.assert_allclose(by_hand(model.layers[1], features[0]), deltas[0], rtol=1e-4)
    sets = {"own weights": example.DAYS, "shared with time": 1}[name]
    assert model.layers[1].kernel.shape[0] == sets


def test_band_is_traded_to_its_edge_and_no_further(prices):
    prices = prices[:1000]
    _, reference, gamma = example.black_scholes(prices[:, :-1], example.LEFT)
    np.testing.assert_array_equal(example.no_trade_band(prices, 0.0), reference)
    band = example.no_trade_band(prices, RATE)
    width = np.cbrt(1.5 * RATE * prices[:, :-1] * gamma**2 / example.RISK_AVERSION)
    distance = np.abs(band - reference)
    assert (distance <= width + 1e-12).all()
    moved = np.diff(band, axis=1, prepend=0) != 0
    np.testing.assert_allclose(distance[moved], width[moved], rtol=1e-9, atol=1e-12)
    assert 0.1 < moved.mean() < 0.9


def least_price(rate, nodes=601, positions=101):
    """Dynamic programming over spot and position: no hedge of these days has a lower price."""
    a, deviation = example.RISK_AVERSION, example.VOLATILITY * np.sqrt(example.DAY)
    reach = 6 * deviation * np.sqrt(example.DAYS)
    logs, delta = np.linspace(-reach, reach, nodes), np.linspace(0, 1, positions)
    spot, (points, weights) = example.SPOT * np.exp(logs), np.polynomial.hermite_e.hermegauss(15)
    trade = rate * spot * (delta[1] - delta[0])
    risk = np.maximum(spot - example.STRIKE, 0)[:, None] + rate * spot[:, None] * delta
    for _ in range(example.DAYS):
        mean = 0
        for point, weight in zip(points, weights / weights.sum(), strict=True):
            step = deviation * point - deviation**2 / 2
            place = np.clip((logs + step + reach) / (logs[1] - logs[0]), 0, nodes - 1)
            i = np.minimum(place.astype(int), nodes - 2)
            share = (place - i)[:, None]
            later = (1 - share) * risk[i] + share * risk[i + 1]
            mean += weight * np.exp(a * (later - (spot * np.expm1(step))[:, None] * delta))
        risk = np.log(mean) / a  # with the new position; now the best of those from each old one
        for j in range(1, positions):
            risk[:, j] = np.minimum(risk[:, j], risk[:, j - 1] + trade)
        for j in reversed(range(positions - 1)):
            risk[:, j] = np.minimum(risk[:, j], risk[:, j + 1] + trade)
    return risk[nodes // 2, 0]


@pytest.fixture(scope="module")
def least():
    """By the cost rate, on a grid that is up to 0.004 too high."""
    return {rate: least_price(rate) for rate in (0.0, RATE)}


def test_least_prices_are_those_of_the_page(least, prices):
    assert least == {0.0: pytest.approx(2.354, abs=0.004), RATE: pytest.approx(2.762, abs=0.004)}
    delta = example.black_scholes(prices[:, :-1], example.LEFT)[1]
    without = example.measures(prices, delta, 0.0)
    formulas = example.formulas()
    assert without["price"] == pytest.approx(least[0.0], abs=0.01)  # there Black-Scholes is all but the best
    assert without["std"] == pytest.approx(formulas["std"], rel=0.06)
    assert formulas["price"] == pytest.approx(integrated(100.0, 30 * example.DAY), abs=1e-6)
    assert without["delta_difference"] == without["cost"] == 0
    with_costs = example.measures(prices, delta, RATE)
    band = example.measures(prices, example.no_trade_band(prices, RATE), RATE)
    assert least[RATE] < band["price"] < with_costs["price"]
    assert band["cost"] < with_costs["cost"]


@pytest.mark.release
def test_a_short_run_writes_sane_numbers(tmp_path, least, monkeypatch, capsys):
    out = tmp_path / "new" / "out"
    monkeypatch.setattr(example, "NETWORKS", {"own weights": example.NETWORKS["own weights"]})
    example.run(seeds=1, epochs=1, paths=4096, out=out)
    assert "own weights, costs 0.2%, seed 0" in capsys.readouterr().out
    with (out / "hedges.csv").open() as file:
        rows = {(float(row["rate"]), row["hedge"]): row for row in csv.DictReader(file)}
    assert len(rows) == 6
    for rate in (0.0, RATE):
        own, classic = rows[rate, "own weights"], rows[rate, "Black-Scholes"]
        assert least[rate] - 0.03 < float(own["price"]) < least[rate] + 0.15
        assert (float(own["price"]) < float(classic["price"])) == (rate > 0)  # so soon, with costs only
        assert 0.3 < float(own["std"]) < 0.7
        assert (float(own["cost"]) > 0) == (rate > 0)
        assert float(own["parameters"]) == example.DAYS * (16 + 16 * 16 + 16 + 16 + 1)
        assert 0 < float(own["delta_difference"]) < 0.1
        model = keras.saving.load_model(out / f"own_weights_{rate}.keras", compile=False)
        assert model.layers[1].weights_at(15)["kernel"].shape == (1, example.UNITS)
    assert (out / "summary.csv").read_text().count("\n") == 7
    assert 20_000 < (out / "deltas.png").stat().st_size < 150_000
    assert not list(out.glob("unfinished*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "positive integer"),
        (["--seeds", "many"], "positive integer"),
        (["--out", "/dev/null/out"], "cannot use --out /dev/null/out"),
        (["--fast"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_end_before_training(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["deep_hedging.py", *arguments])
    with pytest.raises(SystemExit) as raised:
        example.main()
    printed = capsys.readouterr()
    last = raised.value.code if isinstance(raised.value.code, str) else printed.err.splitlines()[-1]
    assert message in last
    assert "\n" not in last
    assert "Epoch" not in printed.out
