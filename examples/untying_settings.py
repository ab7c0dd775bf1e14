"""The settings that `should_you_untie.py` compares: which weights are separate, and the model around them."""

import functools
from typing import Any

import keras
import numpy as np
from mnist_rows import compiled

from untied_rnn import TimeSmoothness, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, LowRank

ROWS, FEATURES, CLASSES = 28, 28, 10
PADDING = -1.0  # not 0: that is a real row without ink

SETTINGS: dict[str, dict[str, Any]] = {
    "tied": {"sharing": "tied"},
    "biases untied": {"sharing": "tied", "bias_sharing": "untied"},
    "kernel untied": {"sharing": "tied", "kernel_sharing": "untied"},
    "recurrent untied": {"sharing": "tied", "recurrent_sharing": "untied"},
    "blocks of 14": {"sharing": Blocks(14)},
    "blocks of 7": {"sharing": Blocks(7)},
    "basis of 4": {"sharing": Basis(4)},
    "low rank 1": {"sharing": LowRank(1)},
    "low rank 2": {"sharing": LowRank(2)},
    "low rank 4": {"sharing": LowRank(4)},
    "low rank 8": {"sharing": LowRank(8)},
    "untied": {"sharing": "untied"},
}
SMOOTH = "untied, TimeSmoothness"


def layer(setting: str, units: int) -> UntiedSimpleRNN:
    if setting != SMOOTH:
        return UntiedSimpleRNN(units, **SETTINGS[setting])
    smooth = TimeSmoothness(l2=1e-4)
    return UntiedSimpleRNN(
        units, kernel_regularizer=smooth, recurrent_regularizer=smooth, bias_regularizer=smooth
    )


@functools.cache
def parameters(setting: str, units: int) -> int:
    """Numbers in the layer and in the head."""
    rnn = layer(setting, units)
    rnn.build((None, ROWS, FEATURES))
    return rnn.count_params() + CLASSES * (units + 1)


def units_for(setting: str, budget: int) -> int:
    """The hidden size of a model of `budget` parameters, whose number is quadratic in the hidden size."""
    sizes = (16, 32, 64)
    quadratic = np.polyfit(sizes, [parameters(setting, n) for n in sizes], 2)
    return round(max(np.roots(quadratic - [0, 0, budget]).real))


def network(setting: str, units: int, masked: bool = False) -> keras.Model:
    """The model of `mnist_rows.py`."""
    rows = keras.Input((ROWS, FEATURES))
    state = layer(setting, units)(keras.layers.Masking(PADDING)(rows) if masked else rows)
    return keras.Model(rows, keras.layers.Dense(CLASSES)(state))


@functools.cache
def trainable(setting: str, units: int, masked: bool, rate: float, steps: int) -> keras.Model:
    """It is compiled once, for all seeds."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    # `clipnorm` shortens the gradients of all timesteps together; the measured accuracies are of that.
    optimizer = keras.optimizers.Adam(schedule, clipnorm=1.0)
    model = compiled(network(setting, units, masked), optimizer, steps)
    model.jit_compile = False  # XLA would compile for longer than these short runs take
    return model


def restart(model: keras.Model, seed: int) -> None:
    """Draws the weights anew and makes the optimizer forget."""
    keras.utils.set_random_seed(seed)
    model.set_weights(keras.models.clone_model(model).get_weights())
    for variable in model.optimizer.variables:
        variable.assign(keras.ops.zeros_like(variable))
