"""The cells of `lista.py`: what a step of the unfolded algorithm computes, and what its steps share.

    lista      x' = soft(x W_t + B y, theta_t)                     all of it is each step's own
    lowrank    the same                                            W_t = W + a deviation of rank 4
    blocks     the same                                            four steps share a W
    tied       x' = soft(x W + B y, theta_t)                       one W for all steps
    cp         x' = soft(x + size_t (y - x A^T) W_t, theta_t)      all but A is each step's own
    tilista    x' = soft(x + size_t (y - x A^T) W, theta_t)        one W for all steps
    alista     the same                                            W is computed beforehand and not trained

`B` is one matrix for all steps, outside of the cell; `A` is given. `theta_t` is a vector in the first four
cells, a number in the others.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn.sharing import Blocks, LowRank, SharingArgument


@keras.saving.register_keras_serializable(package="lista")
class SoftThresholdCell(keras.Layer):
    """`x' = soft(x W + b, theta)`, where `b` is the input."""

    def __init__(self, units: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape: tuple) -> None:
        self.kernel = self.add_weight(name="kernel", shape=(self.units, self.units))
        self.threshold = self.add_weight(name="threshold", shape=(self.units,))

    def linear(self, x: Any, inputs: Any) -> Any:
        return ops.matmul(x, self.kernel) + inputs

    def call(self, inputs: Any, states: list) -> tuple:
        z = self.linear(states[0], inputs)
        x = ops.sign(z) * ops.relu(ops.abs(z) - ops.relu(self.threshold))
        return x, [x]

    def get_config(self) -> dict:
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="lista")
class TiLISTACell(SoftThresholdCell):
    """`x' = soft(x + size (y - x A^T) W, theta)`, where `y` is the input."""

    trains_kernel = True

    def build(self, input_shape: tuple) -> None:
        shape = (input_shape[-1], self.units)
        self.dictionary = self.add_weight(name="dictionary", shape=shape, trainable=False)
        self.kernel = self.add_weight(name="kernel", shape=shape, trainable=self.trains_kernel)
        self.size = self.add_weight(name="size", shape=())
        self.threshold = self.add_weight(name="threshold", shape=())

    def linear(self, x: Any, inputs: Any) -> Any:
        residual = inputs - ops.matmul(x, ops.transpose(self.dictionary))
        return x + self.size * ops.matmul(residual, self.kernel)


@keras.saving.register_keras_serializable(package="lista")
class ALISTACell(TiLISTACell):
    """The same, where `W` is computed beforehand and not trained."""

    trains_kernel = False


# By `--cell`: the name in results, the cell, and which of its weights all steps share.
CELLS: dict[str, tuple[str, type[SoftThresholdCell], dict[str, SharingArgument]]] = {
    "lista": ("LISTA", SoftThresholdCell, {}),
    "lowrank": ("LISTA of low rank", SoftThresholdCell, {"kernel": LowRank(4)}),
    "blocks": ("LISTA in blocks", SoftThresholdCell, {"kernel": Blocks(4)}),
    "tied": ("LISTA with one W", SoftThresholdCell, {"kernel": "tied"}),
    "cp": ("LISTA-CP", TiLISTACell, {"dictionary": "tied"}),
    "tilista": ("TiLISTA", TiLISTACell, {"kernel": "tied", "dictionary": "tied"}),
    "alista": ("ALISTA", ALISTACell, {"kernel": "tied", "dictionary": "tied"}),
}


def analytic(a: np.ndarray) -> np.ndarray:
    """The `W` whose columns have product 1 with their column of `A`, and the smallest with the others."""
    w = np.linalg.solve(a @ a.T, a)
    return w / np.sum(w * a, axis=0)
