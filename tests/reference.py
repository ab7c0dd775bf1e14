"""The NumPy loops of the library's self-test, and their derivatives to every element."""

import numpy as np

from untied_rnn._reference import (
    dense,
    gru_step,
    gru_step_reset_before,
    linear,
    lstm_step,
    relu,
    rnn,
    sigmoid,
    simple_rnn,
    slope,
    softsign,
)

__all__ = [
    "dense",
    "gru_step",
    "gru_step_reset_before",
    "linear",
    "lstm_step",
    "relu",
    "rnn",
    "sigmoid",
    "simple_rnn",
    "slope",
    "softsign",
]


def gradients(loss, arrays):
    """Derivative of the real function `loss(**arrays)` to every element of every array."""
    result = {}
    for name, array in arrays.items():
        result[name] = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            direction = np.zeros(array.shape)
            direction[index] = 1
            result[name][index] = slope(loss, arrays, name, direction)
    return result
