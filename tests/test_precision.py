"""16-bit layers: sums over timesteps and samples are as exact as 16-bit terms allow."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients
from reference_check import parameter_gradients, weights_along_time

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic

T = 400
FORM = {"unroll": False, "return_sequences": True}
FAMILY = {
    "simple": UntiedSimpleRNN,
    "lstm": UntiedLSTM,
    "gru": UntiedGRU,
    "any cell": lambda units, **options: UntiedRNN(keras.layers.GRUCell(units), **options),
    "dense": UntiedDense,
}
SHARED = {
    "block_size": {"sharing": Blocks(T)},
    "period": {"sharing": Periodic(2)},
    "weight_index": {"sharing": Listed([0, 1, 1, 0] * (T // 4))},
    "low rank": {"sharing": LowRank(1, Periodic(2))},
    "basis": {"sharing": Basis(3), "timesteps": T},
}


def gradients_of_ones(layer, x):
    """Gradients of the sum of all outputs, as float64."""
    units = layer.compute_output_shape(x.shape)[-1]
    _, gradients = outputs_and_gradients(layer, x, [np.ones((*x.shape[:2], units))])
    return {name: np.asarray(value, "float64") for name, value in gradients.items()}


def relative_error(received, expected):
    return np.linalg.norm(received - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("simple", "block_size"),
        ("lstm", "period"),
        ("gru", "weight_index"),
        ("any cell", "period"),
        ("dense", "block_size"),
        ("dense", "weight_index"),
        ("simple", "low rank"),
        ("lstm", "basis"),
        ("any cell", "low rank"),
    ],
)
def test_a_gradient_that_timesteps_share_is_added_up_in_float32(name, shared, rng):
    """It is the sum of the gradients of single timesteps: in bfloat16 a sum of ones would end at 256."""
    options = {"dtype": "mixed_bfloat16"} | ({} if name == "dense" else FORM)
    x = rng.normal(size=(2, T, 3))
    layer, untied = FAMILY[name](4, **SHARED[shared], **options), FAMILY[name](4, **options)
    for built in (layer, untied):
        built.build(x.shape)
    layer.set_weights([w + 0.1 * rng.normal(size=w.shape) for w in layer.get_weights()])  # none is zero
    untied.set_weights(list(weights_along_time(layer, T).values()))
    received, terms = gradients_of_ones(layer, x), gradients_of_ones(untied, x)
    for key, expected in parameter_gradients(layer, terms).items():
        # A Dense layer's is one product in 16 bits. CPUs without bfloat16 round partial sums of it too.
        assert relative_error(received[key], expected) < (2**-7 if name == "dense" else 1e-5), key


@pytest.mark.parametrize("name", ["simple", "gru", "dense"])  # Keras's cells add up in 16 bits themselves
def test_a_gradient_is_added_up_over_samples_in_float32(name):
    options = {} if name == "dense" else FORM
    x = np.full((3000, 2, 3), 0.5)
    exact, mixed = FAMILY[name](4, **options), FAMILY[name](4, **options, dtype="mixed_bfloat16")
    for layer in (exact, mixed):
        layer.build(x.shape)
    mixed.set_weights(exact.get_weights())
    expected, received = gradients_of_ones(exact, x), gradients_of_ones(mixed, x)
    for weight in exact.trainable_weights:
        assert relative_error(received[weight.name], expected[weight.name]) < 0.02, weight.name
