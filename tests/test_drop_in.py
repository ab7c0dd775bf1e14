"""What Keras's layers accept, by position, by name and by configuration, these accept as well."""

import inspect

import keras
import numpy as np
import pytest
from autodiff import to_numpy

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN

PAIRS = [
    (keras.layers.SimpleRNN, UntiedSimpleRNN, 3),
    (keras.layers.LSTM, UntiedLSTM, 3),
    (keras.layers.GRU, UntiedGRU, 3),
    (keras.layers.Dense, UntiedDense, 3),
    (keras.layers.RNN, UntiedRNN, keras.layers.GRUCell),
]
# A value of each argument that is not its default, but where another one is refused.
OTHER = {
    "activation": "relu",
    "recurrent_activation": "hard_sigmoid",
    "kernel_initializer": "he_normal",
    "recurrent_initializer": "glorot_normal",
    "bias_initializer": "ones",
    "dropout": 0.1,
    "recurrent_dropout": 0.2,
    "seed": 7,
    "use_cudnn": False,
    "lora_rank": None,
    "lora_alpha": None,
    "quantization_config": None,
}
OF_LATER_VERSIONS = ("lora_alpha", "quantization_config")  # than the first supported one of Keras


def other(parameter):
    if isinstance(parameter.default, bool):
        return not parameter.default
    if parameter.name.endswith("_regularizer"):
        return "l2"
    return "max_norm" if parameter.name.endswith("_constraint") else OTHER[parameter.name]


@pytest.mark.parametrize(("tied", "untied", "first"), PAIRS)
def test_positional_arguments_are_those_of_keras(tied, untied, first):
    def make(cls, *values):
        return cls(first if isinstance(first, int) else first(3), *values)

    parameters = list(inspect.signature(tied).parameters.values())
    names = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
    values = [other(p) for p in names]
    for n in range(len(names) + 1):
        expected, received = make(tied, *values[:n]).get_config(), make(untied, *values[:n]).get_config()
        for name in (parameter.name for parameter in names[:n]):
            if name in expected and name != "activity_regularizer":  # which Keras's SimpleRNN loses
                assert received[name] == expected[name], name
    ours = list(inspect.signature(untied).parameters.values())[1:]
    assert [p.name for p in ours[: len(names)]] == [p.name for p in names]
    rest = [p for p in ours[len(names) :] if p.name not in OF_LATER_VERSIONS]
    assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in rest)
    # But `unroll`, which is "auto" here.
    defaults = {p.name: p.default for p in names if p.name != "unroll"}
    assert {p.name: p.default for p in ours if p.name in defaults} == defaults


@pytest.mark.parametrize(("tied", "untied", "first"), PAIRS)
def test_configurations_of_keras_are_accepted(tied, untied, first, rng):
    layer = tied(first if isinstance(first, int) else first(3))
    same = untied.from_config(layer.get_config())
    x = rng.normal(size=(2, 4, 5)).astype("float32")
    assert same(x).shape == layer(x).shape
    assert same.name == layer.name


def test_what_chooses_between_equal_computations_has_no_effect(rng):
    x = rng.normal(size=(2, 4, 5)).astype("float32")
    for cls in (UntiedSimpleRNN, UntiedLSTM, UntiedGRU):
        layers = [cls(3, implementation=i) for i in (0, 1, 2)]
        for layer in layers:
            layer.build(x.shape)
            layer.set_weights(layers[0].get_weights())
        first, *others = (to_numpy(layer(x))[0] for layer in layers)
        for received in others:
            np.testing.assert_array_equal(received, first)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UntiedLSTM(3, use_cudnn=True), "`use_cudnn`.*one weight set for all timesteps.*True"),
        (lambda: UntiedGRU(3, use_cudnn="yes"), "`use_cudnn`.*'yes'"),
        (lambda: UntiedDense(3, lora_rank=2), "`lora_rank` must be `None`.*lora_rank=2"),
    ],
)
def test_what_untied_layers_cannot_do_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
