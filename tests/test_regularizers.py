"""`TimeSmoothness` against NumPy, and what it does to a layer in training."""

import keras
import numpy as np
import pytest
from cases import I, T, U, set_numbers

from untied_rnn import TimeSmoothness, UntiedDense, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Blocks, Listed, Periodic


def value(tensor):
    return float(keras.ops.convert_to_numpy(tensor))


def penalty(l1, l2, *pairs):
    return sum(l1 * np.abs(b - a).sum() + l2 * ((b - a) ** 2).sum() for a, b in pairs)


NEIGHBOURS = [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize(
    ("name", "l1", "l2", "dial", "pairs"),
    [
        ("dense", 0.3, 0.0, {}, NEIGHBOURS),
        ("dense", 0.0, 0.2, {}, NEIGHBOURS),
        ("dense", 0.3, 0.2, {"sharing": Blocks(3)}, [(0, 1)]),
        ("dense", 0.3, 0.2, {"sharing": Blocks(T)}, []),
        ("dense", 0.3, 0.2, {"sharing": Periodic(3)}, [(0, 1), (1, 2), (2, 0)]),
        ("dense", 0.3, 0.2, {"sharing": Listed([0, 1, 2, 0])}, [(0, 1), (1, 2)]),
        ("dense", 0.3, 0.2, {"frozen_timesteps": [0, 2]}, NEIGHBOURS),
        ("simple", 0.3, 0.2, {"sharing": Periodic(3)}, [(0, 1), (1, 2), (2, 0)]),
        ("any cell", 0.3, 0.2, {"sharing": Periodic(3)}, [(0, 1), (1, 2), (2, 0)]),
        ("any cell", 0.3, 0.2, {"frozen_timesteps": [0, 2]}, NEIGHBOURS),
    ],
)
def test_penalty_is_that_of_neighbours_in_time(name, l1, l2, dial, pairs):
    smooth = TimeSmoothness(l1=l1, l2=l2)
    layer = {
        "simple": lambda: UntiedSimpleRNN(U, kernel_regularizer=smooth, **dial),
        "any cell": lambda: UntiedRNN(keras.layers.GRUCell(U, kernel_regularizer=smooth), **dial),
        "dense": lambda: UntiedDense(U, kernel_regularizer=smooth, **dial),
    }[name]()
    layer.build((None, T, I))
    first_timestep = {}  # of each weight set
    for t, s in reversed(list(enumerate(set_numbers(layer, T)))):
        first_timestep[int(s)] = t
    sets = {s: layer.weights_at(t)["kernel"] for s, t in first_timestep.items()}
    expected = penalty(l1, l2, *((sets[a], sets[b]) for a, b in pairs))
    assert value(layer.losses[0]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def spread(layer):
    """How far the matrices of the timesteps are from their mean, over how large they are."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    return np.abs(kernel - kernel.mean(axis=0)).max() / np.abs(kernel).mean()


def trained(layer, rng):
    """On a problem that wants another weight at each timestep."""
    model = keras.Sequential([keras.Input((T, I)), layer])
    steps = 100
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, steps)), "mse")
    x = rng.normal(size=(64 * steps, T, I))
    y = x.sum(axis=-1, keepdims=True) * np.arange(1, T + 1)[:, None]
    model.fit(x, y, batch_size=64, verbose=0)
    return layer


def test_a_larger_factor_tends_to_the_tied_layer(rng):
    spreads = [
        spread(trained(UntiedDense(1, kernel_regularizer=TimeSmoothness(l2=l2)), rng))
        for l2 in (0.0, 1.0, 1000.0)
    ]
    assert spreads[0] > 0.5
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]
    assert spreads[2] < 0.05


def test_frozen_timesteps_pull_their_neighbours(rng):
    layer = UntiedDense(1, timesteps=T, kernel_regularizer=TimeSmoothness(l2=100.0), frozen_timesteps=[0])
    layer = trained(layer, rng)
    weights = [layer.weights_at(t)["kernel"] for t in range(T)]
    for weight in weights[1:]:
        np.testing.assert_allclose(weight, weights[0], atol=0.2)


def test_configuration():
    smooth = TimeSmoothness(l1=0.1, l2=0.2)
    layer = UntiedDense(U, bias_regularizer=smooth)
    clone = UntiedDense.from_config(layer.get_config()).bias_regularizer
    assert isinstance(clone, TimeSmoothness)
    assert (clone.l1, clone.l2) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"l1": -0.1}, ValueError),
        ({"l2": "1"}, TypeError),
        ({"l2": float("nan")}, ValueError),
        ({"l1": True}, TypeError),
    ],
)
def test_wrong_arguments(options, error):
    with pytest.raises(error, match="must be a number that is not negative"):
        TimeSmoothness(**options)


def test_no_factor_is_an_error():
    with pytest.raises(ValueError, match="`l1`, `l2` or both"):
        TimeSmoothness()
    assert TimeSmoothness(l2=0.0).get_config() == {"l1": 0.0, "l2": 0.0}


@pytest.mark.parametrize("make", [keras.layers.SimpleRNN, keras.layers.GRU])
def test_a_weight_without_timesteps_is_an_error(make):
    layer = make(U, recurrent_regularizer=TimeSmoothness(l2=1.0))
    layer.build((None, T, I))
    with pytest.raises(ValueError, match=r"axis of timesteps. Received: '.*recurrent_kernel' of shape \(3, "):
        layer.losses  # noqa: B018 (a property, which computes them)


def test_16_bit_weights_are_added_up_in_float32():
    """Of 2,000 differences of one each; of 2,000 weights, one in each set."""
    smooth, elementwise = (
        UntiedDense(1, kernel_regularizer=regularizer, use_bias=False, dtype="bfloat16")
        for regularizer in (TimeSmoothness(l1=1.0), keras.regularizers.L1(1.0))
    )
    for layer in (smooth, elementwise):
        layer.build((None, 2001, 1))
        layer.kernel.assign((np.arange(2001) % 2).reshape(-1, 1, 1))
    assert value(smooth.losses[0]) == 2000
    assert value(elementwise.losses[0]) == 1000
    mean = elementwise.averaged(sharing=Blocks(2001)).get_weights()[0]
    assert float(mean[0, 0, 0]) == pytest.approx(1000 / 2001, rel=2**-8)
