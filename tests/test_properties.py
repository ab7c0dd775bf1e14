"""Any configuration on any input equals the NumPy loop, forward and gradients: drawn by hypothesis.

Beyond the pairs of `test_numpy_loop.py`: sizes down to one, empty batches, any mask, sequences shorter than
the layer, any activation, Keras's cells. The profile `ci` draws the same few examples every time, `nightly`
a thousand new ones in each run:

    HYPOTHESIS_PROFILE=nightly pytest tests/test_properties.py
"""

import functools
import os

import hypothesis
import keras
import numpy as np
import reference
from cases import randomised
from conftest import DTYPE
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from reference_check import LOOPS, check_equals_the_loop, simple_dropout

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Blocks, Listed, Periodic

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("nightly", deadline=None, print_blob=True)
# For tests/mutation.py, which asks whether there is a failure and not for the simplest one.
hypothesis.settings.register_profile(
    "any failure", hypothesis.settings.get_profile("ci"), phases=[hypothesis.Phase.generate]
)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
hypothesis.settings.load_profile(PROFILE)
EXAMPLES = 1000 if PROFILE == "nightly" else 20

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
LAYERS = {
    "simple": UntiedSimpleRNN,
    "lstm": UntiedLSTM,
    "gru": UntiedGRU,
    "gru, reset before": lambda units, **options: UntiedGRU(units, reset_after=False, **options),
    "any cell": lambda units, **options: UntiedRNN(keras.layers.LSTMCell(units), **options),
}


@st.composite
def sharings(draw):
    """Arguments that say which timesteps share weights and which are frozen, and the set of each timestep."""
    timesteps = draw(st.integers(1, 6))
    kind, number = draw(st.sampled_from(["untied", "blocks", "period", "index"])), draw(st.integers(1, 7))
    order = draw(st.lists(st.integers(0, 3), min_size=timesteps, max_size=timesteps))
    index = {
        "untied": list(range(timesteps)),
        "blocks": [t // number for t in range(timesteps)],
        "period": [t % number for t in range(timesteps)],
        "index": [sorted(set(order)).index(s) for s in order],
    }[kind]
    sharing = {
        "untied": "untied",
        "blocks": Blocks(number),
        "period": Periodic(number),
        "index": Listed(index),
    }
    arguments = {"sharing": sharing[kind]}
    if kind != "period":
        arguments["timesteps"] = timesteps
    frozen_sets = draw(st.sets(st.sampled_from(index))) if kind != "period" or number <= timesteps else set()
    frozen = [t for t in range(timesteps) if index[t] in frozen_sets]
    if kind == "period":  # frozen timesteps lie within the first period
        frozen = [t for t in frozen if t < number]
    if frozen_sets != set(index):
        arguments["frozen_timesteps"] = frozen
    return arguments, index


@st.composite
def problems(draw):
    """A layer and a call of it; all numbers follow from one seed."""
    name = draw(st.sampled_from(sorted(LAYERS)))
    sharing, index = draw(sharings())
    length = draw(st.integers(1, len(index)))
    batch = draw(st.integers(name == "any cell", 3))  # Keras's own cells take no empty batch
    arguments = {
        "units": draw(SIZES),
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "unroll": draw(st.sampled_from(["auto", False, True, 1, 2, 3])),
        "jit_compile": draw(st.sampled_from([False] * 7 + [True])),
        **sharing,
    }
    if name == "simple":
        arguments |= {
            "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
            "use_bias": draw(st.booleans()),
            "output_units": draw(st.none() | SIZES),
            "output_activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
            "dropout": draw(RATES),
            "recurrent_dropout": draw(RATES),
            "seed": draw(st.integers(0, 1000)),
        }
    call = {
        "x_shape": (batch, length, draw(SIZES)),
        "mask": draw(st.none() | npst.arrays(bool, (batch, length))),
        "given": draw(st.booleans()),
        "training": draw(st.booleans()),
        "numbers": draw(st.integers(0, 2**32 - 1)),
    }
    return name, arguments, call


@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(problems())
def test_equals_the_numpy_loop(problem):
    name, arguments, call = problem
    layer = LAYERS[name](**arguments, dtype=DTYPE)
    (batch, _, input_dim), rng = call["x_shape"], np.random.default_rng(call["numbers"])
    layer.build((None, None, input_dim))
    randomised(layer, rng)
    settings = {}
    if name == "simple":
        for argument in ("activation", "output_activation"):
            settings[argument] = ACTIVATIONS[arguments[argument]]
        if call["training"]:
            settings |= simple_dropout(layer, batch, input_dim)
    loop = functools.partial(LOOPS["lstm" if name == "any cell" else name], **settings)
    x = rng.normal(size=call["x_shape"])
    states = [rng.normal(size=(batch, arguments["units"])) * call["given"] for _ in layer.state_size]
    options = {option: call[option] for option in ("given", "mask", "training")}
    check_equals_the_loop(layer, loop, x, states, rng, **options)
