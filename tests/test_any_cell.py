"""Cells as people write them: no `build` or `get_config`, images for states, random layers inside."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, T, U
from conftest import DTYPE, EXACT
from keras import ops

from untied_rnn import UntiedRNN
from untied_rnn.sharing import Blocks, Periodic


class WithoutBuild(keras.Layer):
    """Keras builds its layers when they are called."""

    state_size = U

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.a = keras.layers.Dense(U, dtype=self.dtype_policy)
        self.b = keras.layers.Dense(U, use_bias=False, dtype=self.dtype_policy)

    def call(self, inputs, states):
        state = ops.tanh(self.a(inputs) + self.b(states[0]))
        return state, [state]


class WithModel(keras.Layer):
    """Its model is built in the constructor."""

    state_size = U

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        both = keras.Input((I + U,), dtype=self.compute_dtype)
        self.model = keras.Model(both, keras.layers.Dense(U, "tanh", dtype=self.dtype_policy)(both))

    def call(self, inputs, states):
        state = self.model(ops.concatenate([inputs, states[0]], axis=-1))
        return state, [state]


class WithoutConfig(keras.Layer):
    """Takes a function, which Keras cannot write down, and none of the arguments of `keras.Layer`."""

    state_size = U

    def __init__(self, function):
        super().__init__(dtype=DTYPE)
        self.function = function

    def build(self, input_shape):
        self.w = self.add_weight(shape=(input_shape[-1] + U, U))

    def call(self, inputs, states):
        state = self.function(ops.matmul(ops.concatenate([inputs, states[0]], axis=-1), self.w))
        return state, [state]


class WithoutKeywords(WithoutConfig):
    def __init__(self, scale):
        super().__init__(lambda a: ops.tanh(scale * a))


CELLS = {
    "without build": lambda: WithoutBuild(dtype=DTYPE),
    "with a model": lambda: WithModel(dtype=DTYPE),
    "without a configuration": lambda: WithoutConfig(ops.tanh),
    "without keywords": lambda: WithoutKeywords(1.5),
}


@pytest.mark.filterwarnings("ignore:`build")  # of Keras's own layer
@pytest.mark.parametrize(("name", "unroll"), [*zip(CELLS, [False, True] * 2, strict=True)])
def test_one_set_for_all_timesteps_equals_keras(name, unroll, rng):
    layer = UntiedRNN(CELLS[name](), timesteps=T, sharing=Blocks(T), unroll=unroll, return_sequences=True)
    tied = keras.layers.RNN(CELLS[name](), return_sequences=True, dtype=DTYPE)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    for each in (layer, tied):
        each(ops.convert_to_tensor(x, DTYPE))
    tied.set_weights([rng.normal(size=w.shape) for w in tied.weights])
    layer.set_weights([w[None] for w in tied.get_weights()])
    received, gradients = outputs_and_gradients(layer, x, [cotangent])
    expected, tied_gradients = outputs_and_gradients(tied, x, [cotangent])
    np.testing.assert_allclose(received[0], expected[0], **EXACT)
    np.testing.assert_allclose(gradients["x"], tied_gradients["x"], **EXACT)
    for ours, theirs in zip(layer.trainable_weights, tied.trainable_weights, strict=True):
        assert tuple(ours.shape) == (1, *theirs.shape)
    ours, theirs = (list(g.values())[1:] for g in (gradients, tied_gradients))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a[0], b, **EXACT)


@pytest.mark.parametrize("name", CELLS)
def test_each_timestep_draws_weights_of_its_own(name):
    layer = UntiedRNN(CELLS[name](), timesteps=T)
    layer.build((None, T, I))
    kernel = layer.get_weights()[0]
    assert len(np.unique(kernel)) == kernel.size == T * kernel[0].size


@keras.saving.register_keras_serializable(package="tests")
class Shifted(keras.initializers.RandomNormal):
    """Not one of Keras's own, so that each weight set takes it from a copy of the cell."""

    def __call__(self, shape, dtype=None):
        return 5 + super().__call__(shape, dtype)


def test_copies_of_a_cell_without_build_are_built_as_it_is():
    class Cell(WithoutBuild):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.a = keras.layers.Dense(U, kernel_initializer=Shifted(stddev=0.1, seed=1))

    layer = UntiedRNN(Cell(), timesteps=T)
    layer.build((None, T, I))
    other, kernel, _ = layer.get_weights()
    assert len(np.unique(kernel)) == T * I * U
    assert abs(kernel.mean() - 5) < 0.2
    assert abs(other.mean()) < 1


def test_a_cell_that_takes_no_name_is_copied(rng):
    tied = keras.layers.RNN(WithoutKeywords(1.5), dtype=DTYPE)
    x = ops.convert_to_tensor(rng.normal(size=(B, T, I)), DTYPE)
    (expected,), (received,) = to_numpy(tied(x)), to_numpy(UntiedRNN.from_tied(tied, T)(x))
    np.testing.assert_allclose(received, expected, **EXACT)


class Remembers(keras.Layer):
    """A state that is an image, and outputs of two kinds."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = (4, 4, 1)
        self.convolution = keras.layers.Conv2D(1, 3, padding="same", dtype=self.dtype_policy)

    def build(self, input_shape):
        self.convolution.build((*input_shape[:-1], input_shape[-1] + 1))

    def get_initial_state(self, batch_size=None):
        return ops.ones((batch_size, 4, 4, 1), self.compute_dtype)

    def call(self, inputs, states):
        image = ops.tanh(self.convolution(ops.concatenate([inputs, states[0]], axis=-1)))
        return {"image": image, "mean": ops.mean(image, axis=(1, 2))}, [image]


@pytest.mark.parametrize(("unroll", "zero"), [(False, True), (True, False)])
def test_states_and_inputs_of_any_rank_and_nested_outputs(unroll, zero, rng):
    layer = UntiedRNN(
        Remembers(dtype=DTYPE),
        return_sequences=True,
        return_state=True,
        unroll=unroll,
        zero_output_for_mask=zero,
    )
    x = rng.normal(size=(2, 3, 4, 4, 2))
    mask = np.array([[True, False, True], [False, True, True]])
    symbolic, state = layer(keras.Input((3, 4, 4, 2), dtype=DTYPE))
    assert (symbolic["image"].shape, symbolic["mean"].shape) == ((None, 3, 4, 4, 1), (None, 3, 1))
    assert state.shape == (None, 4, 4, 1)
    outputs, last = layer(ops.convert_to_tensor(x, DTYPE), mask=ops.convert_to_tensor(mask))
    kernels, biases = layer.get_weights()
    for b in range(2):
        image, shown = np.ones((1, 4, 4, 1)), np.zeros((4, 4, 1))
        for t in range(3):
            if mask[b, t]:
                both = np.concatenate([x[b : b + 1, t], image], axis=-1)
                arguments = (ops.convert_to_tensor(a, DTYPE) for a in (both, kernels[t]))
                image = np.tanh(ops.convert_to_numpy(ops.conv(*arguments, padding="same")) + biases[t])
                shown = image[0]
            expected = shown if mask[b, t] or not zero else 0 * shown
            np.testing.assert_allclose(ops.convert_to_numpy(outputs["image"])[b, t], expected, **EXACT)
            means = ops.convert_to_numpy(outputs["mean"])[b, t]
            np.testing.assert_allclose(means, expected.mean(axis=(0, 1)), **EXACT)
        np.testing.assert_allclose(ops.convert_to_numpy(last)[b], image[0], **EXACT)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 1\)\].*\(2, 4\)"):
        layer(x, initial_state=np.ones((2, 4)))


class Drops(keras.Layer):
    """What it drops of its inputs is its output."""

    state_size = I

    def __init__(self, seed=3, **kwargs):
        super().__init__(**kwargs)
        self.seed = seed
        self.dropout = keras.layers.Dropout(0.5, seed=seed)

    def call(self, inputs, states, training=False):
        return self.dropout(self.dropout(inputs, training=training), training=training), states

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}


def dropped(layer, x):
    """Outputs of ones in training, and their gradient to the inputs, which is the mask as well."""
    _, gradients = outputs_and_gradients(layer, x, [np.ones(x.shape)], training=True)
    return gradients["x"]


@pytest.mark.parametrize("shared", [{}, {"sharing": Periodic(2)}])
def test_random_layers_draw_anew_at_each_timestep_and_alike_in_the_gradient(shared):
    x = np.ones((400, T, I))
    layers = [
        UntiedRNN(Drops(), unroll=unroll, return_sequences=True, **shared) for unroll in (False, True, False)
    ]
    for layer in layers:
        layer.build(x.shape)
    outputs, gradients = outputs_and_gradients(layers[0], x, [np.ones(x.shape)], training=True)
    np.testing.assert_array_equal(outputs[0], gradients["x"])
    assert set(np.unique(outputs[0])) == {0.0, 4.0}
    patterns = outputs[0].transpose(1, 0, 2).reshape(T, -1)
    assert len(np.unique(patterns, axis=0)) == T
    # None of the two draws of a timestep is one of the next: a quarter is kept, and a quarter of that again.
    kept = outputs[0] > 0
    assert (kept[:, 1:] & kept[:, :-1]).mean() == pytest.approx(1 / 16, abs=0.02)
    # The same numbers in every form, and others at the next call.
    np.testing.assert_array_equal(dropped(layers[1], x), outputs[0])
    layer = layers[2]
    first = to_numpy(layer(ops.convert_to_tensor(x, "float32"), training=True))[0]
    second = to_numpy(layer(ops.convert_to_tensor(x, "float32"), training=True))[0]
    np.testing.assert_array_equal(first, outputs[0])
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(to_numpy(layer(ops.convert_to_tensor(x, "float32")))[0], x)


def test_fit_moves_the_seeds_of_random_layers_on(rng):
    layer = UntiedRNN(Drops(), return_sequences=True)
    model = keras.Sequential([keras.Input((T, I)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    before = [ops.convert_to_numpy(generator.state).copy() for generator in layer.seed_generators]
    model.fit(rng.normal(size=(8, T, I)), np.zeros((8, T, 1)), batch_size=4, verbose=0)
    (state,), (old,) = [ops.convert_to_numpy(g.state) for g in layer.seed_generators], before
    assert state[1] - old[1] == 2 * 2 * T  # steps, draws of a timestep, timesteps


class MakesItself(WithoutConfig):
    """Without a configuration, and with a weight that no initializer is known of."""

    def __init__(self, function):
        super().__init__(function)
        self.dense = keras.layers.Dense(U)
        self.dense.build((None, I))


def test_cells_that_must_be_copied_and_cannot_be():
    with pytest.raises(ValueError, match=r"takes a copy of the cell. Expected a cell with `get_config`"):
        UntiedRNN(MakesItself(ops.tanh)).build((None, T, I))
    tied = keras.layers.RNN(WithoutConfig(ops.tanh))
    tied.build((None, T, I))
    with pytest.raises(TypeError, match=r"`get_config`.*gets a copy"):
        UntiedRNN.from_tied(tied, T)
