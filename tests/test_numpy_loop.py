"""Each layer equals its NumPy loop, outputs and gradients, in every form.

Whatever pair of values of two options below one takes, there is a case with both.
"""

import functools

import numpy as np
import pytest
import reference
from cases import B, I, O, T, U, case_name, pairwise, random_mask, randomised
from conftest import BACKEND, DTYPE
from reference_check import LOOPS, check_equals_the_loop, simple_dropout, simple_loop, stacks_of

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

FORMS = {
    "loop": {"unroll": False},
    "three steps an iteration": {"unroll": 3},
    "written out": {"unroll": True},
    "XLA": {"unroll": False, "jit_compile": True},
}
# Torch always writes the steps out. XLA is an option of TensorFlow alone; one layer stands for all.
FORMS_HERE = ["loop"] if BACKEND == "torch" else ["loop", "three steps an iteration", "written out"]
# Arguments of the layer, the weight set of each timestep, and a timestep that has its set for itself.
SHARING = {
    "untied": ({"timesteps": T}, [0, 1, 2, 3], 1),
    "block_size": ({"timesteps": T, "block_size": 3}, [0, 0, 0, 1], 3),
    "period": ({"period": 3}, [0, 1, 2, 0], 1),
    "weight_index": ({"weight_index": [1, 0, 1, 2]}, [1, 0, 1, 2], 1),
}
OPTIONS = {
    "form": FORMS_HERE,
    "sharing": list(SHARING),
    "frozen": [False, True],
    "masking": ["none", "hold", "zero"],
    "states": ["zeros", "given", "of the batch before"],
    "return_sequences": [False, True],
    "return_state": [False, True],
    "go_backwards": [False, True],
    "use_bias": [False, True],
}
SIMPLE = {
    "form": [*FORMS_HERE, "XLA"] if BACKEND == "tensorflow" else FORMS_HERE,
    "output_units": [None, O],
    "activation": ["tanh", "relu", "linear", "softsign"],  # the last without a hand-written gradient
    "dropout": [0.0, 0.4],
    "recurrent_dropout": [0.0, 0.3],
}


def layer_of(cls, case, rng, **arguments):
    sharing, _, alone = SHARING[case["sharing"]]
    layer = cls(
        U,
        frozen_timesteps=[alone] if case["frozen"] else None,
        zero_output_for_mask=case["masking"] == "zero",
        stateful=case["states"] == "of the batch before",
        **{name: case[name] for name in ("return_sequences", "return_state", "go_backwards", "use_bias")},
        **FORMS[case["form"]],
        **sharing,
        **arguments,
        dtype=DTYPE,
    )
    layer.build((B, T, I))
    return randomised(layer, rng)


def check(layer, loop, case, rng, **dropout):
    mask = None if case["masking"] == "none" else random_mask(rng)
    states = [rng.normal(size=(B, U)) * (case["states"] == "given") for _ in layer.state_size]
    if layer.stateful:  # one batch first: the layer itself has to remember where it ended
        before = rng.normal(size=(B, T, I))
        layer(before, mask=mask)
        states = loop(before, states, stacks_of(layer, T), mask=mask, go_backwards=layer.go_backwards)[1]
    check_equals_the_loop(
        layer,
        functools.partial(loop, **dropout),
        SHARING[case["sharing"]][1],
        rng.normal(size=(B, T, I)),
        states,
        rng,
        given=case["states"] == "given",
        mask=mask,
        training=bool(dropout),
    )


@pytest.mark.parametrize("case", pairwise(OPTIONS | SIMPLE), ids=case_name)
def test_simple_rnn(case, rng):
    names = ("output_units", "activation", "dropout", "recurrent_dropout")
    options = {"output_activation": "sigmoid", "seed": 9, **{name: case[name] for name in names}}
    layer = layer_of(UntiedSimpleRNN, case, rng, **options)
    activation = getattr(reference, case["activation"], np.tanh)
    loop = functools.partial(simple_loop, activation=activation, output_activation=reference.sigmoid)
    check(layer, loop, case, rng, **simple_dropout(layer, B, I))


@pytest.mark.parametrize("case", pairwise(OPTIONS), ids=case_name)
def test_lstm(case, rng):
    check(layer_of(UntiedLSTM, case, rng), LOOPS["lstm"], case, rng)


@pytest.mark.parametrize("case", pairwise(OPTIONS | {"reset_after": [True, False]}), ids=case_name)
def test_gru(case, rng):
    layer = layer_of(UntiedGRU, case, rng, reset_after=case["reset_after"])
    check(layer, LOOPS["gru" if case["reset_after"] else "gru, reset before"], case, rng)
