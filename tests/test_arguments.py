"""What the constructor refuses: at once, and saying what was expected and what came."""

import pytest

from untied_rnn import UntiedSimpleRNN

WRONG = [
    ("units", 0, ValueError),
    ("units", -1, ValueError),
    ("units", 1.5, TypeError),
    ("units", "8", TypeError),
    ("units", None, TypeError),
    ("units", True, TypeError),
    ("timesteps", 0, ValueError),
    ("timesteps", 2.0, TypeError),
    ("output_units", 0, ValueError),
    ("output_units", "ten", TypeError),
    ("dropout", -0.1, ValueError),
    ("dropout", 1.1, ValueError),
    ("dropout", "half", TypeError),
    ("recurrent_dropout", 2, ValueError),
    ("recurrent_dropout", float("nan"), ValueError),
    ("seed", "one", TypeError),
    ("seed", 1.5, TypeError),
    ("use_bias", "no", TypeError),
    ("return_sequences", None, TypeError),
    ("return_state", "yes", TypeError),
    ("go_backwards", 2, TypeError),
    ("stateful", "stateful", TypeError),
    ("zero_output_for_mask", 0.5, TypeError),
    ("unroll", 0, ValueError),
    ("unroll", -2, ValueError),
    ("unroll", 1.5, TypeError),
    ("unroll", "always", ValueError),
    ("jit_compile", "always", ValueError),
    ("jit_compile", None, ValueError),
    ("activation", "no such activation", ValueError),
    ("output_activation", 3, ValueError),
    ("kernel_initializer", "no such initializer", ValueError),
    ("recurrent_regularizer", "no such regularizer", ValueError),
    ("bias_constraint", "no such constraint", ValueError),
    ("kernel_regularizer", 0.1, ValueError),
    ("dtype", "int32", ValueError),
    ("dtype", "float31", ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG)
def test_wrong_arguments(name, value, error):
    with pytest.raises(error) as raised:
        UntiedSimpleRNN(**{"units": 3, name: value})
    assert str(value) in str(raised.value)


def test_unknown_argument():
    with pytest.raises(ValueError, match="return_sequence"):
        UntiedSimpleRNN(3, return_sequence=True)
