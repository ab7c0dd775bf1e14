"""What sharing must not change: direction, masks, dropout, states, and cells with layers within."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, T, U, random_mask, randomised
from conftest import DTYPE, EXACT
from keras import ops

from untied_rnn import UntiedDense, UntiedLSTM, UntiedRNN
from untied_rnn.regularizers import TimeSmoothness
from untied_rnn.sharing import Blocks, Listed, Periodic


@keras.saving.register_keras_serializable(package="tests")
class ConstantFirstCell(keras.Layer):
    """A constant matrix before a trained one of the same shape, in layers whose names Keras makes up."""

    state_size = I

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.constant = keras.layers.Dense(I, use_bias=False, trainable=False, dtype=self.dtype_policy)
        self.trained = keras.layers.Dense(I, use_bias=False, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.constant.build((None, I))
        self.trained.build((None, I))

    def call(self, inputs, states):
        state = ops.tanh(self.constant(inputs) + self.trained(states[0]))
        return state, [state]


@keras.saving.register_keras_serializable(package="tests")
class WeightlessCell(keras.Layer):
    state_size = I

    def call(self, inputs, states):
        state = ops.tanh(inputs + states[0])
        return state, [state]


DIAL = [
    ({"sharing": Blocks(3)}, [0, 0, 0, 1]),
    ({"sharing": Periodic(3)}, [0, 1, 2, 0]),
    ({"sharing": Listed([1, 0, 1, 2])}, [1, 0, 1, 2]),
]


def any_cell(**options):
    cell = keras.layers.GRUCell(U, dtype=DTYPE)
    return UntiedRNN(cell, return_sequences=True, dtype=DTYPE, **options)


def built(make, rng, **options):
    layer = make(**options)
    layer.build((B, T, I))
    return randomised(layer, rng)


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize(("dial", "index"), DIAL, ids=["blocks", "period", "listed"])
def test_backwards_and_masked_as_with_separate_weights(dial, index, unroll, rng):
    """Any cell; the other layers are compared with their NumPy loops, in `test_numpy_loop.py`."""
    options = {"go_backwards": True, "zero_output_for_mask": unroll, "unroll": unroll}
    layer = built(any_cell, rng, **dial, **options)
    untied = built(any_cell, rng, timesteps=T, **options)
    untied.set_weights([weight[index] for weight in layer.get_weights()])
    x, mask = rng.normal(size=(B, T, I)), random_mask(rng)
    for length in (T, 2):
        (received,), (expected,) = (
            to_numpy(one(x[:, :length], mask=mask[:, :length])) for one in (layer, untied)
        )
        np.testing.assert_allclose(received, expected, **EXACT)


def test_dropout_is_the_same_at_shared_timesteps_as_at_separate_ones(rng):
    def make(**options):
        cell = keras.layers.GRUCell(U, dropout=0.4, recurrent_dropout=0.3, seed=4, dtype=DTYPE)
        return UntiedRNN(cell, timesteps=T, return_sequences=True, **options)

    index = [0, 0, 0, 1]
    layer, untied = built(make, rng, sharing=Blocks(3)), built(make, rng)
    untied.set_weights([weight[index] for weight in layer.get_weights()])
    x, cotangent, mask = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U)), random_mask(rng)
    received, gradients = outputs_and_gradients(layer, x, [cotangent], training=True, mask=mask)
    expected, slopes = outputs_and_gradients(untied, x, [cotangent], training=True, mask=mask)
    np.testing.assert_allclose(received[0], expected[0], **EXACT)
    assert not np.allclose(received[0], to_numpy(layer(x, mask=mask))[0])
    for key in set(gradients) - {"x"}:
        sums = [slopes[key][np.equal(index, s)].sum(axis=0) for s in range(max(index) + 1)]
        np.testing.assert_allclose(gradients[key], sums, **EXACT, err_msg=key)


@pytest.mark.parametrize("dial", [{}, {"sharing": Periodic(2)}, {"sharing": Blocks(3)}], ids=str)
@pytest.mark.parametrize("unroll", [False, True])
def test_a_cell_without_weights_has_the_gradient_of_keras(unroll, dial, rng):
    options = {"return_sequences": True, "unroll": unroll, "dtype": DTYPE}
    timesteps = None if "period" in dial else T
    layer = UntiedRNN(WeightlessCell(dtype=DTYPE), timesteps=timesteps, **options, **dial)
    tied = keras.layers.RNN(WeightlessCell(dtype=DTYPE), **options)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, I))
    for one in (layer, tied):
        one.build((B, T, I))
    received, gradients = outputs_and_gradients(layer, x, [cotangent])
    expected, slopes = outputs_and_gradients(tied, x, [cotangent])
    np.testing.assert_allclose(received[0], expected[0], **EXACT)
    np.testing.assert_allclose(gradients["x"], slopes["x"], **EXACT)


# Cells with layers within, and constants.


@pytest.mark.parametrize("move", ["untie", "averaged", "refine", "freeze"])
def test_moves_of_cells_whose_inner_names_differ(move, rng):
    """Each copy of such a cell has names of its own."""
    layer = UntiedRNN(ConstantFirstCell(dtype=DTYPE), timesteps=T, return_sequences=True, sharing=Blocks(T))
    layer.build((B, T, I))
    randomised(layer, rng)
    layer = layer.untie() if move == "freeze" else layer
    arguments = {"refine": {"sharing": Blocks(2)}, "freeze": {"timesteps": [1, 2]}}.get(move, {})
    x = rng.normal(size=(B, T, I))
    moved = getattr(layer, move)(**arguments)
    np.testing.assert_allclose(to_numpy(moved(x))[0], to_numpy(layer(x))[0], **EXACT)


FROZEN = [{}, {"frozen_timesteps": [1]}, {"frozen_timesteps": [0, 2]}, {"trainable": False}]


@pytest.mark.parametrize(("source", "target"), list(zip(FROZEN, [*FROZEN[1:], FROZEN[0]], strict=True)))
def test_files_keep_constants_apart_from_trained_weights(source, target, rng, tmp_path):
    """Keras writes constants last: if a frozen layer did not, both matrices would change places."""
    saved, loaded = (
        keras.Sequential([keras.Input((T, I)), UntiedRNN(ConstantFirstCell(), timesteps=T, **options)])
        for options in (source, target)
    )
    saved.save_weights(tmp_path / "saved.weights.h5")
    loaded.load_weights(tmp_path / "saved.weights.h5")
    x = rng.normal(size=(B, T, I)).astype("float32")
    np.testing.assert_allclose(to_numpy(loaded(x))[0], to_numpy(saved(x))[0], rtol=1e-6, atol=1e-6)


# States and penalties.


@pytest.mark.parametrize(
    "move", [lambda x: x.refine(sharing=Blocks(2)), lambda x: x.averaged(), lambda x: x.freeze([])]
)
def test_moves_copy_states_and_share_none(move, rng):
    layer = UntiedLSTM(U, timesteps=T, sharing=Blocks(T), stateful=True)
    layer.build((B, T, I))
    x = rng.normal(size=(B, T, I)).astype("float32")
    layer(x)
    states = [np.array(ops.convert_to_numpy(state)) for state in layer.states]
    moved = move(layer)
    for state, before in zip(moved.states, states, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state), before)
    moved(x)
    assert not np.allclose(ops.convert_to_numpy(moved.states[0]), states[0])
    for state, before in zip(layer.states, states, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(state), before)


def test_smoothness_around_a_period_counts_frozen_sets_at_their_place():
    layer = UntiedDense(
        U, sharing=Periodic(3), frozen_timesteps=[0], kernel_regularizer=TimeSmoothness(l1=0.3, l2=0.2)
    )
    layer.build((None, T, I))
    kernels = [layer.weights_at(t)["kernel"] for t in (0, 1, 2, 0)]
    steps = np.diff(kernels, axis=0)
    expected = 0.3 * np.abs(steps).sum() + 0.2 * (steps**2).sum()
    assert float(ops.convert_to_numpy(layer.losses[0])) == pytest.approx(expected, rel=1e-5)
