"""`UntiedDense` against NumPy."""

import inspect

import keras
import numpy as np
import pytest
import reference
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, T, U, random_mask, randomised
from conftest import DTYPE, EXACT
from keras.src.testing import TestCase  # as in `check_layer.py`

from untied_rnn import UntiedDense


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(("activation", "function"), [("tanh", np.tanh), (None, reference.linear)])
def test_equals_the_numpy_loop(use_bias, activation, function, rng):
    layer = UntiedDense(U, activation=activation, use_bias=use_bias, dtype=DTYPE)
    layer.build((None, T, I))
    randomised(layer, rng)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    arrays = {"x": x, **dict(zip(names(layer), map(np.asarray, layer.get_weights()), strict=True))}
    slopes = reference.gradients(
        lambda **a: (cotangent * reference.dense(**a, activation=function)).sum(), arrays
    )
    outputs, gradients = outputs_and_gradients(layer, x, [cotangent])
    np.testing.assert_allclose(outputs[0], reference.dense(**arrays, activation=function), **EXACT)
    assert set(gradients) == set(arrays)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[key], **EXACT, err_msg=key)


@pytest.mark.parametrize("use_bias", [True, False])
def test_layer_check_of_keras(use_bias):
    TestCase().run_layer_test(
        UntiedDense,
        {"units": U, "use_bias": use_bias},
        input_shape=(B, T, I),
        expected_output_shape=(B, T, U),
        expected_num_trainable_weights=1 + use_bias,
        expected_num_non_trainable_weights=0,
        expected_num_losses=0,
        supports_masking=True,
    )


def test_every_argument_comes_back_from_the_configuration():
    values = {
        **{"units": 5, "timesteps": 7, "activation": "relu", "use_bias": False},
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.1, seed=1),
        "bias_initializer": keras.initializers.Constant(0.5),
        "kernel_regularizer": keras.regularizers.L1(0.1),
        "bias_regularizer": keras.regularizers.L2(0.2),
        "activity_regularizer": keras.regularizers.L2(0.5),
        "kernel_constraint": keras.constraints.MaxNorm(1.5),
        "bias_constraint": keras.constraints.NonNeg(),
    }
    unused = {"kwargs", "lora_rank", "lora_alpha", "quantization_config"}
    dial = {*UntiedDense.sharing_arguments(), "frozen_timesteps"}
    assert set(inspect.signature(UntiedDense).parameters) - unused - dial == set(values)
    config = UntiedDense(**values).get_config()
    assert UntiedDense.from_config(config).get_config() == config
    for name in values:
        assert config[name] != UntiedDense(3).get_config()[name], name


def test_initializers_regularizers_and_constraints_are_those_of_one_matrix(rng):
    layer = UntiedDense(
        30,
        kernel_initializer=keras.initializers.GlorotNormal(seed=1),
        bias_initializer=keras.initializers.Constant(0.5),
        kernel_regularizer=keras.regularizers.L2(0.5),
        bias_regularizer=keras.regularizers.L1(0.1),
        kernel_constraint=keras.constraints.UnitNorm(axis=0),
        bias_constraint=keras.constraints.NonNeg(),
    )
    model = keras.Sequential([keras.Input((T, 50)), layer])
    kernel, bias = layer.get_weights()
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / 80), rel=0.05)
    assert len({matrix.tobytes() for matrix in kernel}) == T  # each timestep draws its own
    losses = [float(keras.ops.convert_to_numpy(loss)) for loss in layer.losses]
    assert losses == pytest.approx([0.5 * (kernel**2).sum(), 0.1 * bias.sum()], rel=1e-5)
    model.compile(keras.optimizers.SGD(10.0), "mse")
    model.fit(rng.normal(size=(8, T, 50)), -10 * np.ones((8, T, 30)), verbose=0)
    kernel, bias = layer.get_weights()
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(bias, 0)


def test_activity_regularizer_sees_the_output(rng):
    regularizer = keras.regularizers.L1(0.5)
    layer = UntiedDense(U, activity_regularizer=regularizer)
    passing = keras.layers.Activation("linear", activity_regularizer=regularizer)
    passing(layer(rng.normal(size=(B, T, I))))
    received, expected = (float(keras.ops.convert_to_numpy(x.losses[0])) for x in (layer, passing))
    assert received == pytest.approx(expected, rel=1e-5)


def test_a_mask_is_handed_on_and_changes_nothing_here(rng):
    x, mask = rng.normal(size=(B, T, I)), random_mask(rng)
    x[~mask] = 0
    layer = UntiedDense(U)
    masked = layer(keras.layers.Masking()(x))
    np.testing.assert_array_equal(to_numpy(masked)[0], to_numpy(layer(x))[0])
    pooled = keras.layers.GlobalAveragePooling1D()(masked)
    expected = np.stack([to_numpy(masked)[0][i][mask[i]].mean(axis=0) for i in (0, 1)])
    np.testing.assert_allclose(to_numpy(pooled)[0][:2], expected, rtol=1e-5)


def test_shorter_sequences_use_the_first_weights(rng):
    inputs = keras.Input((None, I))
    layer = UntiedDense(U, timesteps=T)
    model = keras.Model(inputs, layer(inputs))
    x = rng.normal(size=(B, T, I)).astype("float32")
    for length in (T, 1, 3):
        expected = to_numpy(layer(x))[0][:, :length]
        np.testing.assert_allclose(model.predict(x[:, :length], verbose=0), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_numpy(layer(x[:, :length]))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer(np.zeros((B, I))), "ndim=3"),
        (lambda layer: layer(np.zeros((B, T, I + 1))), "axis 2"),
        (lambda layer: layer(np.zeros((B, T + 1, I))), r"4 timesteps.*sequence of 5"),
        (lambda layer: layer(keras.Input((T + 1, I))), r"4 timesteps.*sequence of 5"),
        (lambda layer: layer(np.zeros((B, 0, I))), "at least one timestep"),
        (lambda layer: UntiedDense(U)(keras.Input((None, I))), "Give `timesteps`"),
        (lambda layer: UntiedDense(0), "`units` must be"),
        (lambda layer: UntiedDense(U, dtype="int32"), "floating-point"),
        (lambda layer: UntiedDense.from_tied(keras.layers.Dense(3), T), "built"),
    ],
)
def test_wrong_uses(call, message):
    layer = UntiedDense(U)
    layer(np.zeros((B, T, I)))
    with pytest.raises(ValueError, match=message):
        call(layer)
