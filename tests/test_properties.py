"""Any configuration on any input equals the NumPy loop, forward and gradients: drawn by hypothesis.

The profile `ci` draws the same few examples every time, `nightly` a thousand new ones in each run:

    HYPOTHESIS_PROFILE=nightly pytest tests/test_properties.py
"""

import os

import hypothesis
import keras
import numpy as np
import pytest
import reference
from autodiff import names, outputs_and_gradients
from cases import randomised
from conftest import BACKEND, DTYPE, EXACT
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from untied_rnn import UntiedSimpleRNN

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
# For tests/mutation.py, which asks whether there is a failure and not for the simplest one.
hypothesis.settings.register_profile(
    "any failure", hypothesis.settings.get_profile("ci"), phases=[hypothesis.Phase.generate]
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
hypothesis.settings.load_profile(PROFILE)
# JAX compiles each example for seconds.
EXAMPLES = 1000 if PROFILE == "nightly" else {"tensorflow": 60, "torch": 60, "jax": 15}[BACKEND]

# With and without a slope known from the output.
ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": reference.relu,
    "sigmoid": reference.sigmoid,
    "linear": reference.linear,
    "softsign": reference.softsign,
    "silu": lambda a: a * reference.sigmoid(a),
    "softplus": lambda a: np.log1p(np.exp(a)),
}
SIZES = st.integers(1, 3)
RATES = st.sampled_from([0.0, 0.0, 0.4])


@st.composite
def problems(draw):
    """Arguments of a layer, and of a call of it; all numbers follow from one seed."""
    timesteps = draw(st.integers(1, 5))
    length = draw(st.integers(1, timesteps))
    batch = draw(st.integers(0, 3))
    arguments = {
        "units": draw(SIZES),
        "timesteps": timesteps,
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "use_bias": draw(st.booleans()),
        "output_units": draw(st.none() | SIZES),
        "output_activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "dropout": draw(RATES),
        "recurrent_dropout": draw(RATES),
        "seed": draw(st.integers(0, 1000)),
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "unroll": draw(st.sampled_from(["auto", False, True, 1, 2, 3])),
    }
    call = {
        "x_shape": (batch, length, draw(SIZES)),
        "mask": draw(st.none() | npst.arrays(bool, (batch, length))),
        "has_initial_state": draw(st.booleans()),
        "training": draw(st.booleans()),
        "numbers": draw(st.integers(0, 2**32 - 1)),
    }
    return arguments, call


def check(arguments, *, x_shape, mask, has_initial_state, training, numbers, **options):
    layer = UntiedSimpleRNN(**arguments, **options, dtype=DTYPE)
    (batch, _, input_dim), units, rng = x_shape, layer.units, np.random.default_rng(numbers)
    layer.build((None, None, input_dim))
    randomised(layer, rng)
    arrays = {"x": rng.normal(size=x_shape)}
    if has_initial_state:
        arrays["initial_state"] = rng.normal(size=(batch, units))
    arrays |= dict(zip(names(layer), map(np.asarray, layer.get_weights()), strict=True))
    seeds = keras.random.SeedGenerator(layer.seed)

    def dropped(rate, size):  # drawn as the layer does, in the same order
        if not training or not rate:
            return 1.0
        ones = keras.ops.ones((batch, size), DTYPE)
        return keras.ops.convert_to_numpy(keras.random.dropout(ones, rate, seed=seeds))

    settings = {
        "activation": ACTIVATIONS[arguments["activation"]],
        "output_activation": ACTIVATIONS[arguments["output_activation"]],
        "mask": mask,
        "go_backwards": layer.go_backwards,
        "zero_output_for_mask": layer.zero_output_for_mask,
        "input_dropout": dropped(layer.dropout, input_dim),
        "state_dropout": dropped(layer.recurrent_dropout, units),
    }

    def call(x, initial_state=None, **weights):
        initial_state = np.zeros((batch, units)) if initial_state is None else initial_state
        sequence, state = reference.simple_rnn(x, initial_state, **weights, **settings)
        output = sequence if layer.return_sequences else sequence[:, -1]
        return (output, state) if layer.return_state else (output,)

    expected = call(**arrays)
    cotangents = [rng.normal(size=y.shape) for y in expected]
    outputs, gradients = outputs_and_gradients(
        layer, arrays["x"], cotangents, arrays.get("initial_state"), mask=mask, training=training
    )
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)

    def loss(**moved):
        return sum((c * y).sum() for c, y in zip(cotangents, call(**moved), strict=True))

    slopes = reference.gradients(loss, arrays)
    assert set(gradients) == set(slopes)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, slopes[name], **EXACT, err_msg=name)


@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(problems())
def test_equals_the_numpy_loop(problem):
    arguments, call = problem
    check(arguments, **call)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="`jit_compile` is TensorFlow's")
@hypothesis.settings(max_examples=EXAMPLES // 10)
@hypothesis.given(problems())
def test_equals_the_numpy_loop_under_xla(problem):
    arguments, call = problem
    # XLA draws other random numbers than the reference does outside of it: noise is drawn before.
    check(arguments, **call, jit_compile=True)
