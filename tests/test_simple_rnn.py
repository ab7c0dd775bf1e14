"""`UntiedSimpleRNN`: its arguments. That it equals its NumPy loop is what `test_numpy_loop.py` shows."""

import inspect

import keras
import numpy as np
import pytest
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, O, T, U, randomised
from check_layer import check_layer

from untied_rnn import UntiedSimpleRNN


@pytest.mark.parametrize(("output_units", "use_bias"), [(O, True), (None, False)])
def test_layer_check(output_units, use_bias):
    shapes = {"kernel": (3, U), "recurrent_kernel": (U, U)}
    if use_bias:
        shapes["bias"] = (U,)
    if output_units:
        shapes["output_kernel"] = (U, output_units)
        if use_bias:
            shapes["output_bias"] = (output_units,)
    check_layer(
        UntiedSimpleRNN,
        {"units": U, "use_bias": use_bias, "output_units": output_units},
        weight_shapes=shapes,
        output_size=output_units or U,
        state_sizes=[U],
    )


# Every argument with a value that is not its default. Each comes back from the configuration, and the
# tests below show that each of them acts.
NON_DEFAULTS = {
    "units": 5,
    "timesteps": 7,
    "activation": "relu",
    "use_bias": False,
    "output_units": 2,
    "output_activation": "sigmoid",
    "kernel_initializer": keras.initializers.RandomNormal(stddev=0.1, seed=1),
    "recurrent_initializer": keras.initializers.RandomNormal(stddev=0.2, seed=2),
    "bias_initializer": keras.initializers.Constant(0.5),
    "output_initializer": keras.initializers.RandomNormal(stddev=0.3, seed=3),
    "kernel_regularizer": keras.regularizers.L1(0.1),
    "recurrent_regularizer": keras.regularizers.L2(0.2),
    "bias_regularizer": keras.regularizers.L1(0.3),
    "output_regularizer": keras.regularizers.L2(0.4),
    "activity_regularizer": keras.regularizers.L2(0.5),
    "kernel_constraint": keras.constraints.MaxNorm(1.5),
    "recurrent_constraint": keras.constraints.UnitNorm(),
    "bias_constraint": keras.constraints.NonNeg(),
    "output_constraint": keras.constraints.MaxNorm(0.5),
    "dropout": 0.1,
    "recurrent_dropout": 0.2,
    "seed": 42,
    "return_sequences": True,
    "return_state": True,
    "go_backwards": True,
    "stateful": True,
    "unroll": 3,
    "zero_output_for_mask": True,
    "jit_compile": True,
}


SHARING = {*UntiedSimpleRNN.sharing_arguments(), "frozen_timesteps"}  # see `test_shared_weights.py`


def test_every_argument_comes_back_from_the_configuration():
    signature = set(inspect.signature(UntiedSimpleRNN).parameters)
    assert {*NON_DEFAULTS, *SHARING, "kwargs"} == signature
    config = UntiedSimpleRNN(**NON_DEFAULTS, name="here", dtype="float64", trainable=False).get_config()
    assert set(config) == {*NON_DEFAULTS, *SHARING, "name", "dtype", "trainable"}
    clone = UntiedSimpleRNN.from_config(config)
    assert (clone.name, clone.compute_dtype, clone.trainable) == ("here", "float64", False)
    for name, value in NON_DEFAULTS.items():
        received = getattr(clone, name)
        if hasattr(value, "get_config"):
            assert type(received) is type(value), name
            assert received.get_config() == value.get_config(), name
        elif callable(received):
            assert received.__name__ == value, name
        else:
            assert received == value, name
        default = inspect.signature(UntiedSimpleRNN).parameters[name].default
        assert config[name] != default, name


def test_weights_start_as_their_initializers_say():
    layer = UntiedSimpleRNN(
        **{name: value for name, value in NON_DEFAULTS.items() if "initializer" in name},
        units=40,
        output_units=30,
        timesteps=6,
    )
    layer.build((None, None, 50))
    for weight, deviation in ((layer.kernel, 0.1), (layer.recurrent_kernel, 0.2), (layer.output_kernel, 0.3)):
        assert np.std(keras.ops.convert_to_numpy(weight)) == pytest.approx(deviation, rel=0.05)
    for weight in (layer.bias, layer.output_bias):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(weight), 0.5)


@pytest.mark.parametrize(
    ("argument", "weights"),
    [
        ("kernel_regularizer", ["kernel"]),
        ("recurrent_regularizer", ["recurrent_kernel"]),
        ("bias_regularizer", ["bias", "output_bias"]),
        ("output_regularizer", ["output_kernel"]),
    ],
)
def test_regularizers_penalise_their_weights(argument, weights, rng):
    layer = UntiedSimpleRNN(U, output_units=O, timesteps=T, **{argument: keras.regularizers.L2(0.5)})
    layer.build((None, None, I))
    randomised(layer, rng)
    arrays = [keras.ops.convert_to_numpy(getattr(layer, name)) for name in weights]
    assert float(keras.ops.convert_to_numpy(sum(layer.losses))) == pytest.approx(
        sum(0.5 * (a**2).sum() for a in arrays), rel=1e-5
    )


def test_constraints_hold_after_training(rng):
    """Each of its own weights, and the one of biases of both."""
    sizes = {"kernel": 0.01, "recurrent": 0.02, "bias": 0.03, "output": 0.04}
    options = {f"{role}_constraint": keras.constraints.MaxNorm(size) for role, size in sizes.items()}
    layer = UntiedSimpleRNN(U, output_units=O, return_sequences=True, **options)
    model = keras.Sequential([keras.Input((T, I)), layer])
    model.compile(keras.optimizers.SGD(10.0), "mse", jit_compile=False)
    model.fit(rng.normal(size=(8, T, I)), rng.normal(size=(8, T, O)), verbose=0)
    roles = ["kernel", "recurrent", "bias", "output", "bias"]
    for weight, role in zip(layer.weights, roles, strict=True):
        norms = np.linalg.norm(keras.ops.convert_to_numpy(weight), axis=1 if weight.ndim == 3 else -1)
        assert norms.max() == pytest.approx(sizes[role], rel=1e-3), weight.name


def test_activity_regularizer_sees_the_output(rng):
    """Against a Keras layer that passes its input on, since Keras versions differ in the batch mean."""
    regularizer = keras.regularizers.L1(0.5)
    layer = UntiedSimpleRNN(U, activity_regularizer=regularizer)
    passing = keras.layers.Activation("linear", activity_regularizer=regularizer)
    passing(layer(rng.normal(size=(B, T, I))))
    received, expected = (float(keras.ops.convert_to_numpy(x.losses[0])) for x in (layer, passing))
    assert received == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def test_each_call_in_training_draws_its_own_dropout(rng):
    layer = UntiedSimpleRNN(U, dropout=0.4, recurrent_dropout=0.3, seed=9)
    x = rng.normal(size=(B, T, I))
    first, second, inference, again = (to_numpy(layer(x, training=t))[0] for t in (True, True, False, False))
    assert not np.allclose(first, second)
    assert not np.allclose(first, inference)
    np.testing.assert_array_equal(inference, again)


def test_notebook_model(rng):
    """The output matrices get no gradient from a head on the state; the other weights do."""
    layer = UntiedSimpleRNN(U, output_units=O, use_bias=False, return_state=True)
    layer.build((B, T, I))
    x = rng.normal(size=(B, T, I))
    _, gradients = outputs_and_gradients(layer, x, [np.zeros((B, O)), np.ones((B, U))])
    assert list(names(layer)) == ["kernel", "recurrent_kernel", "output_kernel"]
    assert np.all(gradients["output_kernel"] == 0)
    assert np.abs(gradients["kernel"]).min() > 0
