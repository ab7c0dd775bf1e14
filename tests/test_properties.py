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

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN

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


GATED = {
    "lstm": (UntiedLSTM, {}, reference.lstm_step),
    "gru": (UntiedGRU, {}, reference.gru_step),
    "gru, reset before": (UntiedGRU, {"reset_after": False}, reference.gru_step_reset_before),
    "any cell": (lambda units, **k: UntiedRNN(keras.layers.LSTMCell(units), **k), {}, reference.lstm_step),
}


@st.composite
def shared_problems(draw):
    """A layer of the family, timesteps that share weights, and some of those frozen."""
    timesteps = draw(st.integers(1, 6))
    kind, number = draw(st.sampled_from(["untied", "block_size", "period", "index"])), draw(st.integers(1, 7))
    order = draw(st.lists(st.integers(0, 3), min_size=timesteps, max_size=timesteps))
    index = {
        "untied": list(range(timesteps)),
        "block_size": [t // number for t in range(timesteps)],
        "period": [t % number for t in range(timesteps)],
        "index": [sorted(set(order)).index(s) for s in order],
    }[kind]
    dial = {"untied": {}, "index": {"weight_index": index}}.get(kind, {kind: number})
    frozen_sets = draw(st.sets(st.sampled_from(index))) if kind != "period" or number <= timesteps else set()
    frozen = [t for t in range(timesteps) if index[t] in frozen_sets]
    if kind == "period":  # frozen timesteps lie within the first period
        frozen = [t for t in frozen if t < number]
    if frozen_sets != set(index):
        dial["frozen_timesteps"] = frozen
    arguments = {
        "units": draw(SIZES),
        "timesteps": timesteps if kind != "period" else None,
        "return_sequences": draw(st.booleans()),
        "return_state": True,
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "unroll": draw(st.sampled_from(["auto", False, True, 2])),
        **dial,
    }
    name = draw(st.sampled_from(sorted(GATED)))
    length = draw(st.integers(1, timesteps))
    batch = draw(st.integers(name == "any cell", 3))  # Keras's own cells take no empty batch
    call = {
        "x_shape": (batch, length, draw(SIZES)),
        "mask": draw(st.none() | npst.arrays(bool, (batch, length))),
        "numbers": draw(st.integers(0, 2**32 - 1)),
    }
    return name, arguments, index, call


@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(shared_problems())
def test_family_equals_the_numpy_loop(problem):
    name, arguments, index, call = problem
    cls, options, step = GATED[name]
    layer = cls(**arguments, **options, dtype=DTYPE)
    (batch, length, input_dim), rng = call["x_shape"], np.random.default_rng(call["numbers"])
    layer.build((None, None, input_dim))
    randomised(layer, rng)
    by_timestep = [layer.weights_at(t) for t in range(length)]
    stacks = {key: np.stack([weights[key] for weights in by_timestep]) for key in by_timestep[0]}
    states = [rng.normal(size=(batch, layer.output_size)) for _ in layer.state_size]
    arrays = {"x": rng.normal(size=call["x_shape"])}
    arrays |= {f"initial_state {i}": state for i, state in enumerate(states)}
    settings = {
        "mask": call["mask"],
        "go_backwards": layer.go_backwards,
        "zero_output_for_mask": layer.zero_output_for_mask,
    }

    def run(x, **others):
        states = [others.pop(f"initial_state {i}") for i in range(len(layer.state_size))]
        sequence, last = reference.rnn(step, x, states, others, range(length), **settings)
        return (sequence if layer.return_sequences else sequence[:, -1], *last)

    expected = run(**arrays, **stacks)
    cotangents = [rng.normal(size=y.shape) for y in expected]
    outputs, gradients = outputs_and_gradients(layer, arrays["x"], cotangents, states, mask=call["mask"])
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)

    def loss(**moved):
        return sum((c * y).sum() for c, y in zip(cotangents, run(**moved), strict=True))

    slopes = reference.gradients(loss, {**arrays, **stacks})
    for key in arrays:
        np.testing.assert_allclose(gradients[key], slopes[key], **EXACT, err_msg=key)
    # Those of a weight set are the sum over its timesteps; of a frozen one there are none.
    frozen = layer.frozen_timesteps or []
    trained = sorted(
        {s for t, s in enumerate(index) if t not in frozen and not {s} & {index[f] for f in frozen}}
    )
    for key in stacks:
        sums = [
            sum((slopes[key][t] for t in range(length) if index[t] == s), np.zeros(stacks[key].shape[1:]))
            for s in trained
        ]
        received = gradients[key][: len(trained)]  # a period may have sets that no timestep uses
        np.testing.assert_allclose(received, np.stack(sums), **EXACT, err_msg=key)
        np.testing.assert_array_equal(gradients[key][len(trained) :], 0)
