"""`LowRank`, `Basis` and a user's own sharing: starts, moves, penalties, and what does not go with them.

That they compute what they should is shown in `test_numpy_loop.py` and `test_sharing.py`.
"""

import keras
import numpy as np
import pytest
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, U, randomised
from conftest import DTYPE, EXACT
from reference_check import weights_along_time
from sharing_reference import Scaled

from untied_rnn import (
    PerTimestep,
    TimeSmoothness,
    UntiedDense,
    UntiedGRU,
    UntiedLSTM,
    UntiedRNN,
    UntiedSimpleRNN,
)
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic, Tied

T = 6
STRUCTURED = {
    "low rank": LowRank(1),
    "low rank, blocks": LowRank(2, Blocks(2)),
    "full rank": LowRank(9),
    "spline": Basis(3),
    "fourier": Basis(4, "fourier"),
}
FAMILY = {
    "simple": lambda **k: UntiedSimpleRNN(U, output_units=2, return_sequences=True, dtype=DTYPE, **k),
    "gru": lambda **k: UntiedGRU(U, return_sequences=True, dtype=DTYPE, **k),
    "any cell": lambda **k: UntiedRNN(
        keras.layers.GRUCell(U, kernel_initializer=keras.initializers.GlorotUniform(seed=1), dtype=DTYPE),
        return_sequences=True,
        dtype=DTYPE,
        **k,
    ),
    "dense": lambda **k: UntiedDense(U, dtype=DTYPE, **k),
}
structured = pytest.mark.parametrize("sharing", STRUCTURED.values(), ids=STRUCTURED)


def built(name, rng=None, **options):
    layer = FAMILY[name](timesteps=T, **options)
    layer.build((None, T, I))
    return layer if rng is None else randomised(layer, rng)


def outputs(layer, x):
    return to_numpy(layer(x))[0]


# Starts.


@structured
@pytest.mark.parametrize("cls", [UntiedSimpleRNN, UntiedLSTM])
def test_a_layer_starts_as_the_tied_one(cls, sharing, rng):
    seeds = {
        "kernel_initializer": keras.initializers.GlorotUniform(seed=1),
        "recurrent_initializer": keras.initializers.Orthogonal(seed=2),
        "bias_initializer": keras.initializers.RandomNormal(seed=3),
    }
    layer, again, tied = (cls(U, sharing=s, dtype=DTYPE, **seeds) for s in (sharing, sharing, Tied()))
    x = rng.normal(size=(B, T, I))
    np.testing.assert_allclose(outputs(layer, x), outputs(tied, x), **EXACT)
    outputs(again, x)
    for one, other in zip(layer.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("sharing", [LowRank(1), Basis(3), Scaled()], ids=str)
@pytest.mark.parametrize("name", ["simple", "dense"])
def test_one_step_of_training_makes_all_timesteps_different(name, sharing, rng):
    layer = built(name, sharing=sharing, bias_initializer="random_normal")
    model = keras.Sequential([keras.Input((T, I), dtype=DTYPE), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x = rng.normal(size=(8, T, I))
    model.fit(x, 10 * rng.normal(size=model.compute_output_shape(x.shape)), verbose=0)
    for name, weights in weights_along_time(layer, T).items():
        differences = np.abs(weights[:, None] - weights).reshape(T, T, -1).max(axis=-1)
        assert np.all(differences[~np.eye(T, dtype=bool)] > 1e-7), name


# Moves.


@structured
@pytest.mark.parametrize("name", ["simple", "any cell", "dense"])
def test_from_tied_computes_the_same_and_can_learn(name, sharing, rng):
    tied_class = {"simple": keras.layers.SimpleRNN, "dense": keras.layers.Dense}.get(name)
    tied = (
        tied_class(U, dtype=DTYPE) if tied_class else keras.layers.RNN(keras.layers.GRUCell(U), dtype=DTYPE)
    )
    tied.build((B, T, I))
    randomised(tied, rng)
    cls = {"simple": UntiedSimpleRNN, "dense": UntiedDense, "any cell": UntiedRNN}[name]
    layer = cls.from_tied(tied, T, sharing=sharing)
    x = rng.normal(size=(B, T, I))
    expected = outputs(tied, x)
    close = EXACT if layer.compute_dtype == DTYPE else {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(outputs(layer, x), expected, **close)
    _, gradients = outputs_and_gradients(layer, x, [rng.normal(size=expected.shape)])
    for key in names(layer):
        if not key.endswith("_a"):  # whose gradient is zero as long as B is
            largest = np.abs(gradients[key]).reshape(len(gradients[key]), -1).max(axis=1)
            assert np.all(largest[len(largest) > 1 :] > 0), key  # the first state is zero


EXACT_MOVES = [
    (Tied(), LowRank(1)),
    (Tied(), Basis(3)),
    (LowRank(1), LowRank(2)),
    (LowRank(1, Blocks(2)), LowRank(1)),
    (Blocks(3), LowRank(9, Blocks(3))),
    (LowRank(2, Periodic(3)), "untied"),
    (Basis(2), Basis(3)),
    (Basis(3, "fourier"), Basis(5, "fourier")),
    (Basis(3), "untied"),
    ("untied", Basis(T)),
    ("untied", Basis(T, "fourier")),
    ("untied", LowRank(9)),
    (Scaled(), LowRank(3)),
]


@pytest.mark.parametrize(("old", "new"), EXACT_MOVES, ids=str)
@pytest.mark.parametrize("name", ["simple", "dense"])
def test_exact_moves_keep_the_function(name, old, new, rng):
    layer = built(name, rng, sharing=old)
    moved = layer.refine(sharing=new)
    x = rng.normal(size=(B, T, I))
    np.testing.assert_allclose(outputs(moved, x), outputs(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [("untied", LowRank(1)), ("untied", Basis(3)), (LowRank(1), Tied()), (Blocks(2), Basis(2))],
)
def test_moves_without_room_are_refused_and_averaged_is_the_nearest(old, new, rng):
    layer = built("dense", rng, sharing=old)
    with pytest.raises(ValueError, match=r"would change 'kernel' at the timesteps \[.*averaged"):
        layer.refine(sharing=new)
    nearest = layer.averaged(sharing=new)
    wanted, found = (weights_along_time(one, T)["kernel"] for one in (layer, nearest))
    distance = np.linalg.norm(found - wanted)
    for _ in range(20):  # no small change comes closer
        other = nearest.averaged(sharing=new)
        # W of `LowRank` is the mean.
        change = {w.name: w.name != "kernel" or not isinstance(new, LowRank) for w in other.weights}
        other.set_weights(
            [
                w + 1e-3 * changes * rng.normal(size=w.shape)
                for w, changes in zip(nearest.get_weights(), change.values(), strict=True)
            ]
        )
        assert np.linalg.norm(weights_along_time(other, T)["kernel"] - wanted) >= distance * (1 - 1e-6)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_compress_is_the_best_approximation_of_the_deviations(rank, rng):
    layer = built("gru", rng)
    compressed, errors = layer.compress(rank)
    assert compressed.sharing == LowRank(rank)
    for name, weights in weights_along_time(layer, T).items():
        deviations = weights - weights.mean(axis=0)
        lost = (
            np.linalg.svd(deviations, compute_uv=False)[:, rank:]
            if weights.ndim == 3
            else 0
            if rank
            else deviations
        )
        expected = np.sqrt((np.asarray(lost) ** 2).sum() / (weights**2).sum())
        assert errors[name] == pytest.approx(expected, rel=1e-5, abs=1e-6)
        found = np.linalg.norm(weights_along_time(compressed, T)[name] - weights) / np.linalg.norm(weights)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_weights_of_a_basis_serve_other_numbers_of_timesteps(rng):
    """Hours and half-hours: the functions are of relative time."""
    hours = built("dense", rng, sharing=Basis(4, "fourier"))
    halves = UntiedDense(U, timesteps=2 * T, sharing=Basis(4, "fourier"), dtype=DTYPE)
    halves.build((None, 2 * T, I))
    halves.set_weights(hours.get_weights())
    for t in range(T):
        for name, weight in hours.weights_at(t).items():
            np.testing.assert_allclose(halves.weights_at(2 * t)[name], weight, **EXACT)


def test_a_basis_of_ones_own_functions(rng):
    def days(timesteps, size):
        return np.eye(size)[np.arange(timesteps) % size]

    layer, periodic = built("dense", sharing=Basis(2, days)), built("dense", sharing=Periodic(2))
    weights = [rng.normal(size=w.shape) for w in periodic.weights]
    periodic.set_weights(weights)
    layer.set_weights([w[None] for w in weights])
    x = rng.normal(size=(B, T, I))
    np.testing.assert_allclose(outputs(layer, x), outputs(periodic, x), **EXACT)
    with pytest.raises(ValueError, match=r"some combination is constant"):
        built("dense", sharing=Basis(1, lambda timesteps, size: np.arange(timesteps)[:, None]))
    with pytest.raises(
        ValueError, match=r"shape \(6, 2\), \(timesteps, size\), from `kind`. Received: \(6,\)"
    ):
        built("dense", sharing=Basis(2, lambda timesteps, size: np.ones(timesteps)))


# Parts of layers, and weights of cells by name.


def test_parts_have_sharings_of_their_own():
    parts = {"kernel_sharing": "tied", "recurrent_sharing": LowRank(1), "output_sharing": Blocks(3)}
    layer = built("simple", **parts)
    assert {w.name: w.shape[0] for w in layer.weights} == {
        **{"kernel": 1, "recurrent_kernel": 1, "recurrent_kernel_a": T, "recurrent_kernel_b": T},
        **{"bias": T, "output_kernel": 2, "output_bias": T},
    }
    other = layer.averaged(kernel_sharing=Blocks(2))  # the others stay
    assert [w.shape[0] for w in other.weights] == [3, 1, T, T, T, 2, T]
    assert {w.shape[0] for w in layer.untie().weights} == {T}  # speaks for all


def test_no_timesteps_are_needed_where_all_parts_take_any():
    layer = UntiedGRU(
        U, kernel_sharing="tied", recurrent_sharing=Periodic(2), bias_sharing=LowRank(1, Periodic(3))
    )
    layer.build((None, None, I))
    assert layer(np.ones((B, 9, I), "float32")).shape == (B, U)
    with pytest.raises(ValueError, match="Give `timesteps`"):
        UntiedGRU(U, kernel_sharing="tied").build((None, None, I))


def test_weights_of_a_cell_by_name(rng):
    cell = keras.layers.GRUCell(U, dtype=DTYPE)
    layer = UntiedRNN(cell, sharing={"kernel": Tied(), "bias": LowRank(1)}, timesteps=T)
    layer.build((None, T, I))
    shapes = {w.name: w.shape[0] for w in layer.weights}
    assert shapes == {"kernel": 1, "recurrent_kernel": T, "bias": 1, "bias_a": T, "bias_b": T}
    again = UntiedRNN.from_config(layer.get_config())
    assert again.sharing == layer.sharing
    with pytest.raises(
        ValueError, match=r"names of weights in `sharing`: \['kernel', 'recurrent_kernel', 'bias'\]"
    ):
        UntiedRNN(keras.layers.GRUCell(U), sharing={"w": Tied()}, timesteps=T).build((None, T, I))


# Penalties, constraints, freezing, optimizers.


@structured
def test_a_regularizer_is_applied_to_each_parameter(sharing, rng):
    layer = built(
        "dense", rng, sharing=sharing, kernel_regularizer=keras.regularizers.L2(0.1), use_bias=False
    )
    expected = 0.1 * sum((w**2).sum() for w in layer.get_weights())
    found = sum(float(keras.ops.convert_to_numpy(loss)) for loss in layer.losses)
    assert found == pytest.approx(expected, rel=1e-5)


@structured
@pytest.mark.parametrize("name", ["simple", "dense"])
def test_smoothness_is_of_the_weights_of_neighbours(name, sharing, rng):
    layer = built(name, rng, sharing=sharing, kernel_regularizer=TimeSmoothness(l1=0.3, l2=0.2))
    steps = np.diff(weights_along_time(layer, T)["kernel"], axis=0)
    expected = 0.3 * np.abs(steps).sum() + 0.2 * (steps**2).sum()
    (loss,) = layer.losses
    assert float(keras.ops.convert_to_numpy(loss)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sharing": LowRank(1), "kernel_constraint": "non_neg"}, "Expected no constraint on 'kernel'"),
        ({"sharing": Basis(2), "bias_constraint": "non_neg"}, "Expected no constraint on 'bias'"),
        ({"sharing": LowRank(1), "frozen_timesteps": [0]}, "share weights to be frozen together"),
        ({"kernel_sharing": "tied", "frozen_timesteps": [0]}, "share weights to be frozen together"),
        ({"sharing": Listed([0, 1]), "timesteps": None}, None),
    ],
)
def test_what_does_not_go_together(options, message):
    layer = UntiedDense(U, **{"timesteps": T, **options})
    if message is None:
        layer.build((None, 2, I))
        assert layer.timesteps == 2
        return
    with pytest.raises(ValueError, match=message):
        layer.build((None, T, I))


def test_one_optimizer_step_for_each_factor(rng):
    """Lamb looks at the norm of a variable: of each factor by itself, as if they were separate."""
    layer = built("dense", rng, sharing=LowRank(1), use_bias=False)
    before = dict(zip(names(layer), layer.get_weights(), strict=True))
    optimizer = PerTimestep(keras.optimizers.Lamb(0.1))
    gradients = [rng.normal(size=w.shape).astype(DTYPE) for w in before.values()]
    gradients[2][0] *= 100
    optimizer.apply(list(map(keras.ops.convert_to_tensor, gradients)), layer.trainable_variables)
    for (name, old), new in zip(before.items(), layer.get_weights(), strict=True):
        for one, other in zip(old, new, strict=True):
            ratio = np.linalg.norm(other - one) / np.linalg.norm(one)
            assert ratio == pytest.approx(0.1, rel=1e-2), name
