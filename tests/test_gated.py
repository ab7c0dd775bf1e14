"""`UntiedLSTM` and `UntiedGRU` against NumPy loops."""

import inspect
import itertools
import random

import keras
import numpy as np
import pytest
import reference
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, T, U, case_name, random_mask, randomised
from check_layer import check_layer
from conftest import BACKEND, DTYPE, EXACT

from untied_rnn import UntiedGRU, UntiedLSTM

LAYERS = {
    "lstm": (UntiedLSTM, {}, reference.lstm_step),
    "gru": (UntiedGRU, {}, reference.gru_step),
    "gru, reset before": (UntiedGRU, {"reset_after": False}, reference.gru_step_reset_before),
}
DIAL = {
    "untied": ({}, range(T)),
    "tied": ({"block_size": T}, [0] * T),
    "blocks": ({"block_size": 3}, [0, 0, 0, 1]),
    "period": ({"period": 3}, [0, 1, 2, 0]),
    "index": ({"weight_index": [1, 0, 1, 2]}, [1, 0, 1, 2]),
}


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_check(name, use_bias):
    cls, options, _ = LAYERS[name]
    parts = 4 if cls is UntiedLSTM else 3
    shapes = {"kernel": (3, parts * U), "recurrent_kernel": (U, parts * U)}
    if use_bias:
        shapes["bias"] = (2, parts * U) if name == "gru" else (parts * U,)
    check_layer(
        cls,
        {"units": U, "use_bias": use_bias, **options},
        weight_shapes=shapes,
        output_size=U,
        state_sizes=[U, U] if cls is UntiedLSTM else [U],
    )


OPTIONS = {
    "return_sequences": [False, True],
    "go_backwards": [False, True],
    "stateful": [False, True],
    "masking": ["none", "hold", "zero"],
    "unroll": [False, True, 3],
    "dial": list(DIAL),
    "use_bias": [True, False],
}
ALL_CASES = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
# A sample in which all values occur; a smaller one on JAX, where each takes seconds to compile.
NUMBER = 12 if BACKEND == "jax" else 40
CASES = [{**case, "jit_compile": False} for case in random.Random(0).sample(ALL_CASES, NUMBER)]
if BACKEND == "tensorflow":
    CASES += [{**case, "jit_compile": True} for case in random.Random(1).sample(ALL_CASES, 8)]


@pytest.mark.parametrize("case", CASES, ids=case_name)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_numpy_loop(name, case, rng):
    cls, options, step = LAYERS[name]
    dial, index = DIAL[case["dial"]]
    options = {**options, **{k: v for k, v in case.items() if k not in ("masking", "dial")}, **dial}
    masking = case["masking"]
    timesteps = None if "period" in dial else T
    layer = cls(
        U,
        timesteps=timesteps,
        return_state=True,
        zero_output_for_mask=masking == "zero",
        dtype=DTYPE,
        **options,
    )
    layer.build((B, T, I))
    randomised(layer, rng)
    x = rng.normal(size=(B, T, I))
    states = [rng.normal(size=(B, U)) for _ in layer.state_size]
    mask = None if masking == "none" else random_mask(rng)
    weights = {key: np.asarray(w) for key, w in zip(names(layer), layer.get_weights(), strict=True)}
    settings = {
        "mask": mask,
        "go_backwards": case["go_backwards"],
        "zero_output_for_mask": masking == "zero",
    }
    if case["stateful"]:  # one batch first: the layer itself has to remember where it ended
        before = rng.normal(size=(B, T, I))
        layer(before, mask=mask)
        zeros = [np.zeros((B, U)) for _ in states]
        _, states = reference.rnn(step, before, zeros, weights, index, **settings)

    def call(x, **arrays):
        states = [arrays.pop(f"initial_state {i}") for i in range(len(layer.state_size))]
        outputs, last = reference.rnn(step, x, states, arrays, index, **settings)
        return (outputs if case["return_sequences"] else outputs[:, -1], *last)

    arrays = {"x": x, **{f"initial_state {i}": state for i, state in enumerate(states)}, **weights}
    expected = call(**arrays)
    cotangents = [rng.normal(size=y.shape) for y in expected]
    slopes = reference.gradients(
        lambda **arrays: sum((c * y).sum() for c, y in zip(cotangents, call(**arrays), strict=True)), arrays
    )
    outputs, gradients = outputs_and_gradients(
        layer, x, cotangents, initial_state=None if case["stateful"] else states, mask=mask
    )
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)
    given = {name for name in arrays if not (case["stateful"] and name.startswith("initial_state"))}
    assert set(gradients) == given
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[key], **EXACT, err_msg=key)


@pytest.mark.parametrize("argument", ["activation", "recurrent_activation"])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", None, "softsign"])
@pytest.mark.parametrize("name", LAYERS)
def test_activations(name, activation, argument, rng):
    """A loop with the hand-written gradient, or without, against the tied Keras layer."""
    cls, options, _ = LAYERS[name]
    options = {**options, argument: activation, "return_sequences": True, "dtype": DTYPE}
    tied = cls.tied_class(U, **options)
    tied.build((B, T, I))
    randomised(tied, rng)
    layer = cls.from_tied(tied, T, block_size=T)
    layer.unroll = False
    x, mask, cotangent = rng.normal(size=(B, T, I)), random_mask(rng), rng.normal(size=(B, T, U))
    cotangent[~mask] = 0  # Keras's tied layer says other things there before the first unmasked timestep
    outputs, gradients = outputs_and_gradients(layer, x, [cotangent], mask=mask)
    wanted, tied_gradients = outputs_and_gradients(tied, x, [cotangent], mask=mask)
    np.testing.assert_allclose(outputs[0][mask], wanted[0][mask], **EXACT)
    for key, gradient in gradients.items():
        gradient = gradient if key == "x" else gradient[0]
        np.testing.assert_allclose(gradient, tied_gradients[key], **EXACT, err_msg=key)


@pytest.mark.parametrize("unit_forget_bias", [True, False])
def test_forget_gates_start_open(unit_forget_bias):
    layer = UntiedLSTM(
        U,
        timesteps=3,
        unit_forget_bias=unit_forget_bias,
        bias_initializer=keras.initializers.RandomNormal(0.0, 0.1, seed=3),
    )
    layer.build((None, 3, I))
    i, f, g, o = np.split(keras.ops.convert_to_numpy(layer.bias), 4, axis=-1)
    assert np.all(f == 1) == unit_forget_bias
    for part in (i, g, o) if unit_forget_bias else (i, f, g, o):
        assert np.all(np.abs(part) < 0.6)
        assert len(np.unique(part)) == part.size  # each timestep draws its own


@pytest.mark.parametrize("name", LAYERS)
def test_every_argument_comes_back_from_the_configuration(name):
    cls, options, _ = LAYERS[name]
    values = {
        **{"units": 5, "timesteps": 7, "activation": "relu", "recurrent_activation": "hard_sigmoid"},
        **{"use_bias": False, "kernel_constraint": "non_neg", "recurrent_regularizer": "l2"},
        **{"dropout": 0.1, "recurrent_dropout": 0.2, "seed": 42, "block_size": 2, "frozen_timesteps": [0, 1]},
        **{"return_sequences": True, "return_state": True, "go_backwards": True, "stateful": True},
        **({"unit_forget_bias": False} if cls is UntiedLSTM else {"reset_after": False}),
        **options,
    }
    config = cls(**values).get_config()
    assert set(inspect.signature(cls).parameters) - {"kwargs"} <= set(config)
    clone = cls.from_config(config)
    assert clone.get_config() == config
    for key, value in values.items():
        received = getattr(clone, key)
        if isinstance(value, str):
            received = getattr(received, "__name__", type(received).__name__).lower().replace("_", "")
            value = value.replace("_", "")
        assert received == value, key


@pytest.mark.parametrize("rates", [(0.4, 0.0), (0.0, 0.3), (0.4, 0.3)])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_dropout_is_that_of_the_tied_layer(name, unroll, rates, rng):
    cls, options, _ = LAYERS[name]
    options = {**options, "dropout": rates[0], "recurrent_dropout": rates[1], "seed": 9, "dtype": DTYPE}
    tied = cls.tied_class(U, return_sequences=True, **options)
    tied.build((B, T, I))
    randomised(tied, rng)
    layer = cls.from_tied(tied, T, block_size=T)
    layer.unroll = unroll
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    wanted, tied_gradients = outputs_and_gradients(tied, x, [cotangent], training=True)
    outputs, gradients = outputs_and_gradients(layer, x, [cotangent], training=True)
    np.testing.assert_allclose(outputs[0], wanted[0], **EXACT)
    for key, gradient in gradients.items():
        gradient = gradient if key == "x" else gradient[0]
        np.testing.assert_allclose(gradient, tied_gradients[key], **EXACT, err_msg=key)
    (inference,) = to_numpy(layer(x))
    assert not np.allclose(inference, outputs[0])
