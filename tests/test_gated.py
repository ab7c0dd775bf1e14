"""`UntiedLSTM` and `UntiedGRU`: arguments and dropout, in part against the tied layers of Keras.

That they equal their NumPy loops is what `test_numpy_loop.py` shows.
"""

import inspect

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients
from cases import B, I, T, U, random_mask, randomised
from check_layer import check_layer
from conftest import DTYPE, EXACT

from untied_rnn import UntiedGRU, UntiedLSTM
from untied_rnn.sharing import Blocks

LAYERS = {
    "lstm": (UntiedLSTM, {}),
    "gru": (UntiedGRU, {}),
    "gru, reset before": (UntiedGRU, {"reset_after": False}),
}


@pytest.mark.parametrize(("cls", "parts", "biases"), [(UntiedLSTM, 4, ()), (UntiedGRU, 3, (2,))])
def test_layer_check(cls, parts, biases):
    features = parts * U
    check_layer(
        cls,
        {"units": U},
        weight_shapes={
            "kernel": (3, features),
            "recurrent_kernel": (U, features),
            "bias": (*biases, features),
        },
        output_size=U,
        state_sizes=[U, U] if cls is UntiedLSTM else [U],
    )


def check_against_the_tied_layer(name, rng, unroll=False, mask=None, training=False, **options):
    cls, more = LAYERS[name]
    options |= {**more, "return_sequences": True, "dtype": DTYPE}
    tied = cls.tied_class(U, **options)
    tied.build((B, T, I))
    randomised(tied, rng)
    layer = cls.from_tied(tied, T, sharing=Blocks(T))
    layer.unroll = unroll
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    call = {"mask": mask, "training": training}
    if mask is not None:
        cotangent[~mask] = 0  # Keras's tied layer says other things there before the first unmasked timestep
    (expected,), slopes = outputs_and_gradients(tied, x, [cotangent], **call)
    (outputs,), gradients = outputs_and_gradients(layer, x, [cotangent], **call)
    seen = slice(None) if mask is None else mask
    np.testing.assert_allclose(outputs[seen], expected[seen], **EXACT)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient if key == "x" else gradient[0], slopes[key], **EXACT, err_msg=key)


@pytest.mark.parametrize(
    ("name", "activation", "recurrent_activation"),
    [
        ("lstm", "sigmoid", "tanh"),
        ("lstm", "softsign", "sigmoid"),  # the last without a hand-written gradient
        ("gru", "sigmoid", "tanh"),
        ("gru", "tanh", "softsign"),
        ("gru, reset before", "relu", "tanh"),
    ],
)
def test_activations(name, activation, recurrent_activation, rng):
    options = {"activation": activation, "recurrent_activation": recurrent_activation}
    check_against_the_tied_layer(name, rng, mask=random_mask(rng), **options)


@pytest.mark.parametrize(
    ("name", "dropout", "recurrent_dropout", "unroll"),
    [
        ("lstm", 0.4, 0.0, False),
        ("lstm", 0.4, 0.3, False),
        ("lstm", 0.0, 0.3, True),
        ("gru", 0.0, 0.3, False),
        ("gru", 0.4, 0.3, True),
        ("gru, reset before", 0.4, 0.3, False),
        ("gru, reset before", 0.4, 0.0, True),
    ],
)
def test_dropout_is_that_of_the_tied_layer(name, dropout, recurrent_dropout, unroll, rng):
    rates = {"dropout": dropout, "recurrent_dropout": recurrent_dropout, "seed": 9}
    check_against_the_tied_layer(name, rng, unroll, training=True, **rates)


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
    cls, options = LAYERS[name]
    values = {
        **{"units": 5, "timesteps": 7, "activation": "relu", "recurrent_activation": "hard_sigmoid"},
        **{"use_bias": False, "kernel_constraint": "non_neg", "recurrent_regularizer": "l2"},
        **{
            "dropout": 0.1,
            "recurrent_dropout": 0.2,
            "seed": 42,
            "sharing": Blocks(2),
            "frozen_timesteps": [0, 1],
        },
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
