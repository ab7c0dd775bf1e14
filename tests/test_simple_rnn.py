"""`UntiedSimpleRNN` against the NumPy loop and against the tied Keras layer."""

import inspect
import itertools
import random

import keras
import numpy as np
import pytest
import reference
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, O, T, U, case_name, random_mask, randomised
from check_layer import check_layer
from conftest import BACKEND, DTYPE, EXACT

from untied_rnn import UntiedSimpleRNN


@pytest.mark.parametrize("output_units", [None, O])
@pytest.mark.parametrize("use_bias", [True, False])
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


OPTIONS = {
    "return_sequences": [False, True],
    "return_state": [False, True],
    "go_backwards": [False, True],
    "stateful": [False, True],
    "masking": ["none", "hold", "zero"],
    "output_units": [None, O],
    "unroll": [False, True, 3],
}
ALL_CASES = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
if BACKEND == "torch":  # there every form is the unrolled one
    ALL_CASES = [case for case in ALL_CASES if case["unroll"] is False]
# A sample in which all triples of values occur; a smaller one on JAX, where each takes seconds to compile.
NUMBER = 24 if BACKEND == "jax" else 96
CASES = [{**case, "jit_compile": False} for case in random.Random(0).sample(ALL_CASES, NUMBER)]
if BACKEND == "tensorflow":
    CASES += [{**case, "jit_compile": True} for case in random.Random(1).sample(ALL_CASES, 16)]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_equals_the_numpy_loop(case, rng):
    options = {k: v for k, v in case.items() if k != "masking"}
    masking = case["masking"]
    layer = UntiedSimpleRNN(
        U,
        timesteps=T,
        zero_output_for_mask=masking == "zero",
        activation="tanh",
        output_activation="sigmoid",
        dtype=DTYPE,
        **options,
    )
    layer.build((B, None if case["unroll"] is False else T, I))
    randomised(layer, rng)
    x, initial_state = rng.normal(size=(B, T, I)), rng.normal(size=(B, U))
    mask = None if masking == "none" else random_mask(rng)
    weights = {name: np.asarray(w) for name, w in zip(names(layer), layer.get_weights(), strict=True)}
    settings = {
        "mask": mask,
        "go_backwards": case["go_backwards"],
        "zero_output_for_mask": masking == "zero",
        "output_activation": reference.sigmoid,
    }
    if case["stateful"]:  # one batch first: the layer itself has to remember where it ended
        before = rng.normal(size=(B, T, I))
        layer(before, mask=mask)
        _, initial_state = reference.simple_rnn(before, np.zeros((B, U)), **weights, **settings)

    def call(x, initial_state, **weights):
        outputs, state = reference.simple_rnn(x, initial_state, **weights, **settings)
        outputs = outputs if case["return_sequences"] else outputs[:, -1]
        return (outputs, state) if case["return_state"] else (outputs,)

    expected = call(x, initial_state, **weights)
    cotangents = [rng.normal(size=y.shape) for y in expected]
    arrays = {"x": x, "initial_state": initial_state, **weights}
    slopes = reference.gradients(
        lambda **arrays: sum((c * y).sum() for c, y in zip(cotangents, call(**arrays), strict=True)), arrays
    )
    outputs, gradients = outputs_and_gradients(
        layer, x, cotangents, initial_state=None if case["stateful"] else initial_state, mask=mask
    )
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)
    assert set(gradients) == set(arrays) - ({"initial_state"} if case["stateful"] else set())
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[name], **EXACT, err_msg=name)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("tanh", np.tanh),
        ("relu", reference.relu),
        ("sigmoid", reference.sigmoid),
        (None, reference.linear),
        ("softsign", reference.softsign),  # without a slope known from its output: plain autodiff
    ],
)
@pytest.mark.parametrize("unroll", [False, True])
def test_activations(activation, function, unroll, rng):
    layer = UntiedSimpleRNN(U, activation=activation, return_sequences=True, unroll=unroll, dtype=DTYPE)
    layer.build((B, T, I))
    randomised(layer, rng)
    x, initial_state, mask = rng.normal(size=(B, T, I)), rng.normal(size=(B, U)), random_mask(rng)
    cotangent = rng.normal(size=(B, T, U))
    arrays = {"x": x, "initial_state": initial_state}
    arrays |= {name: np.asarray(w) for name, w in zip(names(layer), layer.get_weights(), strict=True)}

    def call(x, initial_state, **weights):
        return reference.simple_rnn(x, initial_state, **weights, activation=function, mask=mask)[0]

    slopes = reference.gradients(lambda **arrays: (cotangent * call(**arrays)).sum(), arrays)
    (output,), gradients = outputs_and_gradients(layer, x, [cotangent], initial_state, mask=mask)
    np.testing.assert_allclose(output, call(**arrays), **EXACT)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[name], **EXACT, err_msg=name)


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


DIAL = {"block_size", "period", "weight_index", "frozen_timesteps"}  # see `test_dial.py`


def test_every_argument_comes_back_from_the_configuration():
    signature = set(inspect.signature(UntiedSimpleRNN).parameters)
    assert {*NON_DEFAULTS, *DIAL, "kwargs"} == signature
    config = UntiedSimpleRNN(**NON_DEFAULTS, name="here", dtype="float64", trainable=False).get_config()
    assert set(config) == {*NON_DEFAULTS, *DIAL, "name", "dtype", "trainable"}
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


@pytest.mark.parametrize(
    ("argument", "weights"),
    [
        ("kernel_constraint", ["kernel"]),
        ("recurrent_constraint", ["recurrent_kernel"]),
        ("bias_constraint", ["bias", "output_bias"]),
        ("output_constraint", ["output_kernel"]),
    ],
)
def test_constraints_hold_after_training(argument, weights, rng):
    layer = UntiedSimpleRNN(
        U, output_units=O, return_sequences=True, **{argument: keras.constraints.MaxNorm(0.01)}
    )
    model = keras.Sequential([keras.Input((T, I)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(rng.normal(size=(8, T, I)), rng.normal(size=(8, T, O)), verbose=0)
    for weight in layer.weights:
        norms = np.linalg.norm(keras.ops.convert_to_numpy(weight), axis=1 if weight.ndim == 3 else -1)
        if weight.name in weights:
            assert norms.max() <= 0.0101
        else:
            assert norms.max() > 0.011


def test_activity_regularizer_sees_the_output(rng):
    """Against a Keras layer that passes its input on, since Keras versions differ in the batch mean."""
    regularizer = keras.regularizers.L1(0.5)
    layer = UntiedSimpleRNN(U, activity_regularizer=regularizer)
    passing = keras.layers.Activation("linear", activity_regularizer=regularizer)
    passing(layer(rng.normal(size=(B, T, I))))
    received, expected = (float(keras.ops.convert_to_numpy(x.losses[0])) for x in (layer, passing))
    assert received == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


def test_dropout_drops_the_same_everywhere_in_time(rng):
    """Rates near one half, and a reference given the very masks that the seed yields."""
    layer = UntiedSimpleRNN(U, dropout=0.4, recurrent_dropout=0.3, seed=9, return_sequences=True, dtype=DTYPE)
    layer.build((B, T, I))
    randomised(layer, rng)
    x = rng.normal(size=(B, T, I))
    seeds = keras.random.SeedGenerator(9)
    masks = [
        keras.ops.convert_to_numpy(keras.random.dropout(keras.ops.ones(shape, DTYPE), rate, seed=seeds))
        for shape, rate in (((B, I), 0.4), ((B, U), 0.3))
    ]
    assert all(len(np.unique(mask)) == 2 for mask in masks)
    weights = layer.get_weights()
    expected = reference.simple_rnn(
        x, np.zeros((B, U)), *weights, input_dropout=masks[0], state_dropout=masks[1]
    )[0]
    first, second, inference = (to_numpy(layer(x, training=t))[0] for t in (True, True, False))
    np.testing.assert_allclose(first, expected, **EXACT)
    assert not np.allclose(first, second)
    np.testing.assert_allclose(inference, reference.simple_rnn(x, np.zeros((B, U)), *weights)[0], **EXACT)


def test_recurrent_dropout_has_the_right_gradient(rng):
    layer = UntiedSimpleRNN(U, recurrent_dropout=0.5, seed=9, dtype=DTYPE)
    layer.build((B, T, I))
    randomised(layer, rng)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, U))
    dropped = keras.random.dropout(keras.ops.ones((B, U), DTYPE), 0.5, seed=keras.random.SeedGenerator(9))
    dropped = keras.ops.convert_to_numpy(dropped)
    arrays = {"x": x, **dict(zip(names(layer), map(np.asarray, layer.get_weights()), strict=True))}

    def loss(x, **weights):
        outputs, _ = reference.simple_rnn(x, np.zeros((B, U)), **weights, state_dropout=dropped)
        return (cotangent * outputs[:, -1]).sum()

    _, gradients = outputs_and_gradients(layer, x, [cotangent], training=True)
    for name, slope in reference.gradients(loss, arrays).items():
        np.testing.assert_allclose(gradients[name], slope, **EXACT, err_msg=name)


def test_notebook_model(rng):
    """The output matrices get no gradient from a head on the state; the other weights do."""
    layer = UntiedSimpleRNN(U, output_units=O, use_bias=False, return_state=True)
    layer.build((B, T, I))
    x = rng.normal(size=(B, T, I))
    _, gradients = outputs_and_gradients(layer, x, [np.zeros((B, O)), np.ones((B, U))])
    assert list(names(layer)) == ["kernel", "recurrent_kernel", "output_kernel"]
    assert np.all(gradients["output_kernel"] == 0)
    assert np.abs(gradients["kernel"]).min() > 0
