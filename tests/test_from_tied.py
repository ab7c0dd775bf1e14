"""`from_tied` against the tied Keras layer that a layer came from."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, T, U, case_name, random_mask, randomised
from conftest import DTYPE, EXACT

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

LAYERS = [UntiedSimpleRNN, UntiedLSTM, UntiedGRU]

CASES = [
    {"masked": True},
    {"return_sequences": True, "return_state": True, "go_backwards": True},
    {"zero_output_for_mask": True, "return_sequences": True, "use_bias": False, "activation": "relu"}
    | {"masked": True},
    {"dropout": 0.3, "recurrent_dropout": 0.4, "seed": 3, "unroll": True, "activation": "softsign"},
]


@pytest.mark.parametrize("case", CASES, ids=case_name)
@pytest.mark.parametrize("cls", LAYERS)
def test_from_tied_equals_the_tied_layer(cls, case, rng):
    options = {name: value for name, value in case.items() if name != "masked"}
    # On a GPU, cuDNN on JAX gives back what `go_backwards` processed in another order than Keras says.
    cudnn = {} if cls is UntiedSimpleRNN else {"use_cudnn": False}
    tied = cls.tied_class(U, dtype=DTYPE, **cudnn, **options)
    tied.build((B, T, I))
    randomised(tied, rng)
    untied = cls.from_tied(tied, T)
    x = rng.normal(size=(B, T, I))
    mask = random_mask(rng) if "masked" in case else None
    for training in (True, False):  # in this order: Keras draws dropout masks at inference as well
        expected = to_numpy(tied(x, mask=mask, training=training))
        for received, wanted in zip(to_numpy(untied(x, mask=mask, training=training)), expected, strict=True):
            np.testing.assert_allclose(received, wanted, **EXACT)


def test_from_tied_gradient_is_the_tied_one_spread_over_time(rng):
    cls = UntiedSimpleRNN
    tied = cls.tied_class(U, dtype=DTYPE)
    tied.build((B, T, I))
    randomised(tied, rng)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, U))
    _, tied_gradients = outputs_and_gradients(tied, x, [cotangent])
    _, gradients = outputs_and_gradients(cls.from_tied(tied, T), x, [cotangent])
    for name in ("kernel", "recurrent_kernel", "bias"):
        np.testing.assert_allclose(gradients[name].sum(axis=0), tied_gradients[name], **EXACT)


def test_from_tied_inside_bidirectional(rng):
    cls = UntiedGRU
    x, mask = rng.normal(size=(B, T, I)), random_mask(rng)
    tied = keras.layers.Bidirectional(cls.tied_class(U, return_sequences=True, dtype=DTYPE), dtype=DTYPE)
    tied.build((B, T, I))
    untied = keras.layers.Bidirectional(
        cls.from_tied(tied.forward_layer, T),
        backward_layer=cls.from_tied(tied.backward_layer, T),
        dtype=DTYPE,
    )
    untied.build((B, T, I))  # Keras rebuilds the forward layer from its configuration
    untied.forward_layer.set_weights(
        [np.repeat(w[None], T, axis=0) for w in tied.forward_layer.get_weights()]
    )
    (expected,), (received,) = to_numpy(tied(x, mask=mask)), to_numpy(untied(x, mask=mask))
    np.testing.assert_allclose(received, expected, **EXACT)


def test_from_tied_keeps_a_stateful_layer_going(rng):
    cls = UntiedLSTM
    tied = cls.tied_class(U, stateful=True, dtype=DTYPE)
    tied.build((B, T, I))
    first, second = rng.normal(size=(2, B, T, I))
    tied(first)
    untied = cls.from_tied(tied, T)
    np.testing.assert_allclose(to_numpy(untied(second)), to_numpy(tied(second)), **EXACT)


def test_from_tied_keeps_configuration_but_no_name():
    tied = keras.layers.SimpleRNN(U, seed=5, activation="relu", dtype="mixed_bfloat16", name="tied")
    tied.build((None, T, I))
    untied = UntiedSimpleRNN.from_tied(tied, 9)
    assert (untied.seed, untied.timesteps, untied.compute_dtype) == (5, 9, "bfloat16")
    assert untied.activation is keras.activations.relu
    assert untied.name != "tied"


def test_from_tied_refuses_other_layers():
    with pytest.raises(ValueError, match="built"):
        UntiedSimpleRNN.from_tied(keras.layers.SimpleRNN(U), T)
    with pytest.raises(TypeError, match=r"SimpleRNN.*GRU"):
        UntiedSimpleRNN.from_tied(keras.layers.GRU(U), T)


@pytest.mark.parametrize(
    ("timesteps", "error"), [(0, ValueError), (1.5, TypeError), ("4", TypeError), (None, ValueError)]
)
def test_from_tied_refuses_wrong_timesteps(timesteps, error):
    tied = keras.layers.SimpleRNN(U)
    tied.build((B, T, I))
    with pytest.raises(error, match=f"^(`timesteps`|UntiedSimpleRNN).*Received: timesteps={timesteps!r}"):
        UntiedSimpleRNN.from_tied(tied, timesteps)
