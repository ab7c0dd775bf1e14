"""The LSTMs of `lstms` on Keras, with TensorFlow."""

from functools import partial

import tensorflow as tf
from lstms import here, keras_cells
from problems import WEIGHTS, Problem

from contestants.with_tensorflow import CellList, KerasModel


class Cells(CellList):
    def make(self) -> None:
        p = self.problem
        self.model = keras_cells.build(p.timesteps, p.input_dim, p.units)
        weights = p.weights()
        self.model.set_weights([weights[name][t] for t in range(p.timesteps) for name in WEIGHTS])
        self.variables = self.model.trainable_variables
        self.build_optimizer()

    def state(self, x: tf.Tensor) -> tf.Tensor:
        return self.model(x)


class Here(KerasModel):
    def make(self) -> None:
        p = self.problem
        self.model = here.build(p.timesteps, p.input_dim, p.units)
        weights = p.weights()
        self.model.set_weights([weights[name] for name in WEIGHTS])
        self.variables = self.model.trainable_variables
        self.build_optimizer()


def contestants(problem: Problem) -> dict[str, tuple]:
    """Name, and its kind and maker."""
    return {
        f"{name}, TensorFlow{' XLA' if xla else ''}": (kind, partial(maker, jit_compile=xla))
        for name, kind, maker in (("list of Keras cells", "untied", Cells), ("this layer", "ours", Here))
        for xla in (True, False)
    }
