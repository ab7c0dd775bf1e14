"""One check that every layer of the family passes."""

import json
import tempfile

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy

# Private, but it is the check that Keras's own layers pass, and it ships in Keras's wheel.
from keras.src.testing import TestCase

BATCH, TIMESTEPS, INPUT_DIM = 2, 4, 3


def check_layer(cls, arguments, *, weight_shapes, output_size, state_sizes):
    """Checks `cls(**arguments)` on inputs `(2, 4, 3)`.

    Args:
        cls: The layer class.
        arguments: Constructor arguments, without output forms (`return_sequences` and the like).
        weight_shapes: Expected shapes by name of all weights, without the axis of timesteps.
        output_size: Expected size of the output.
        state_sizes: Expected sizes of the states.
    """
    _check_by_keras(cls, arguments, weight_shapes, output_size, state_sizes)
    _check_weights(cls, arguments, weight_shapes)
    _check_every_timestep_learns(cls, arguments, output_size, state_sizes)
    _check_files_keep_outputs(cls, arguments)
    _check_wrappers(cls, arguments, output_size)
    _check_lengths(cls, arguments)


def _inputs():
    return np.random.default_rng(1).normal(size=(BATCH, TIMESTEPS, INPUT_DIM)).astype("float32")


def _check_by_keras(cls, arguments, weight_shapes, output_size, state_sizes):
    states = tuple((BATCH, size) for size in state_sizes)
    for more in (False, True):  # the last output alone, or all outputs and the states
        output = (BATCH, TIMESTEPS, output_size) if more else (BATCH, output_size)
        TestCase().run_layer_test(
            cls,
            {**arguments, "return_sequences": more, "return_state": more},
            input_shape=(BATCH, TIMESTEPS, INPUT_DIM),
            expected_output_shape=(output, *states) if more else output,
            expected_num_trainable_weights=len(weight_shapes),
            expected_num_non_trainable_weights=0,
            expected_num_non_trainable_variables=1,
            expected_num_seed_generators=1,
            expected_num_losses=0,
            supports_masking=True,
            run_training_check=not more,
        )


def _check_weights(cls, arguments, weight_shapes):
    layer = cls(**arguments)
    layer.build((None, TIMESTEPS, INPUT_DIM))
    assert {w.name: tuple(w.shape) for w in layer.weights} == {
        name: (TIMESTEPS, *shape) for name, shape in weight_shapes.items()
    }
    assert layer.count_params() == TIMESTEPS * sum(int(np.prod(shape)) for shape in weight_shapes.values())


def _check_every_timestep_learns(cls, arguments, output_size, state_sizes):
    layer = cls(**arguments, return_sequences=True)
    x = _inputs()
    layer(x)
    cotangent = np.random.default_rng(2).normal(size=(BATCH, TIMESTEPS, output_size))
    initial_state = [np.ones((BATCH, size)) for size in state_sizes]
    _, gradients = outputs_and_gradients(layer, x, [cotangent], initial_state=initial_state)
    for weight in layer.trainable_weights:
        per_timestep = np.abs(gradients[weight.name]).reshape(TIMESTEPS, -1).max(axis=1)
        assert np.all(per_timestep > 0), f"{weight.name}: gradient per timestep {per_timestep}"


def _check_files_keep_outputs(cls, arguments):
    x = _inputs()
    model = keras.Sequential([keras.Input((TIMESTEPS, INPUT_DIM)), cls(**arguments)])
    expected = model.predict(x, verbose=0)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras", safe_mode=True)
        np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
        model.save_weights(f"{folder}/model.weights.h5")
        other = keras.models.clone_model(model)
        assert not np.allclose(other.predict(x, verbose=0), expected)
        other.load_weights(f"{folder}/model.weights.h5")
        np.testing.assert_array_equal(other.predict(x, verbose=0), expected)
    layer = model.layers[0]
    assert json.loads(json.dumps(layer.get_config())) == layer.get_config()


def _check_wrappers(cls, arguments, output_size):
    x = _inputs()
    both = keras.layers.Bidirectional(cls(**arguments, return_sequences=True))
    (joined,) = to_numpy(both(x))
    (forward,) = to_numpy(both.forward_layer(x))
    (backward,) = to_numpy(both.backward_layer(x))
    assert not np.allclose(forward, backward)
    np.testing.assert_allclose(joined, np.concatenate([forward, backward[:, ::-1]], axis=-1), rtol=1e-6)
    inner = cls(**arguments)
    clips = np.stack([x, 2 * x, -x], axis=1)
    (each,) = to_numpy(keras.layers.TimeDistributed(inner)(clips))
    for i in range(clips.shape[1]):
        np.testing.assert_allclose(each[:, i], to_numpy(inner(clips[:, i]))[0], rtol=1e-5, atol=1e-6)


def _check_lengths(cls, arguments):
    x = _inputs()
    layer = cls(**arguments, timesteps=TIMESTEPS, return_sequences=True)
    (long,) = to_numpy(layer(x))
    (short,) = to_numpy(layer(x[:, :2]))
    np.testing.assert_allclose(short, long[:, :2], rtol=1e-5, atol=1e-6)
    (single,) = to_numpy(cls(**arguments)(x[:, :1]))
    assert np.all(np.isfinite(single))
    with pytest.raises(ValueError, match=r"4 timesteps.*sequence of 5"):
        layer(np.zeros((1, 5, INPUT_DIM), "float32"))
    with pytest.raises(ValueError, match=r"4 timesteps.*sequence of 5"):
        cls(**arguments, timesteps=4)(keras.Input((5, INPUT_DIM)))
    with pytest.raises(ValueError, match="Give `timesteps`"):
        cls(**arguments)(keras.Input((None, INPUT_DIM)))
