"""Each layer equals its NumPy loop, outputs and gradients, in every form.

Whatever pair of values of two options below one takes, there is a case with both.
"""

import functools

import numpy as np
import pytest
import reference
from cases import B, I, O, T, U, case_name, pairwise, random_mask, randomised
from conftest import BACKEND, DTYPE
from reference_check import LOOPS, check_equals_the_loop, simple_dropout, simple_loop, weights_along_time
from sharing_reference import Scaled

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic, Tied

FORMS = {
    "loop": {"unroll": False},
    "three steps an iteration": {"unroll": 3},
    "written out": {"unroll": True},
    "XLA": {"unroll": False, "jit_compile": True},
}
# Torch always writes the steps out. XLA is an option of TensorFlow alone; one layer stands for all.
FORMS_HERE = ["loop"] if BACKEND == "torch" else ["loop", "three steps an iteration", "written out"]
# Arguments of the layer, and a timestep that can be frozen, since it has its weights for itself.
SHARING = {
    "untied": ({"timesteps": T}, 1),
    "blocks": ({"timesteps": T, "sharing": Blocks(3)}, 3),
    "period": ({"sharing": Periodic(3)}, 1),
    "listed": ({"sharing": Listed([1, 0, 1, 2])}, 1),
    "low rank": ({"timesteps": T, "sharing": LowRank(1, Blocks(3))}, None),
    "basis": ({"timesteps": T, "sharing": Basis(3, "fourier")}, None),
    "own": ({"timesteps": T, "sharing": Scaled()}, None),
    "parts": (
        {"timesteps": T, "kernel_sharing": Tied(), "recurrent_sharing": LowRank(2), "bias_sharing": Basis(2)},
        None,
    ),
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
    sharing, alone = SHARING[case["sharing"]]
    layer = cls(
        U,
        frozen_timesteps=[alone] if case["frozen"] and alone is not None else None,
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
        states = loop(
            before, states, weights_along_time(layer, T), mask=mask, go_backwards=layer.go_backwards
        )[1]
    check_equals_the_loop(
        layer,
        functools.partial(loop, **dropout),
        rng.normal(size=(B, T, I)),
        states,
        rng,
        given=case["states"] == "given",
        mask=mask,
        training=bool(dropout),
        first=T if layer.stateful and layer.timesteps is None else 0,
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
