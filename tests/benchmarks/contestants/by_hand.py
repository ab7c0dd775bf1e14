"""Untied recurrences as users write them in a `keras.Layer` of their own."""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import ops


class ListOfCells(keras.Layer):
    """A cell for each timestep, in a list, and a loop."""

    def __init__(self, cell: Callable[[], keras.Layer], timesteps: int):
        super().__init__()
        self.cells = [cell() for _ in range(timesteps)]

    def build(self, shape: tuple) -> None:
        for cell in self.cells:
            cell.build((None, shape[-1]))

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Runs over `(batch, timesteps, features)`, or over the same `(batch, features)` at each timestep."""
        steps = ops.unstack(inputs, axis=1) if len(inputs.shape) == 3 else [inputs] * len(self.cells)
        sizes = keras.tree.flatten(self.cells[0].state_size)
        states = [ops.zeros((ops.shape(inputs)[0], size)) for size in sizes]
        for cell, x_t in zip(self.cells, steps, strict=True):
            output, states = cell(x_t, states)
        return output


class SimpleByHand(keras.Layer):
    """The simple cell. Subclasses add its weights and run it."""

    def __init__(self, units: int, timesteps: int):
        super().__init__()
        self.units, self.timesteps = units, timesteps

    def shapes(self, input_dim: int) -> tuple:
        """Of W, U and b of one timestep."""
        return (input_dim, self.units), (self.units, self.units), (self.units,)


class VariablePerTimestep(SimpleByHand):
    """Three weights for each timestep."""

    def build(self, shape: tuple) -> None:
        shapes = self.shapes(shape[-1])
        self.steps = [[self.add_weight(shape=shape) for shape in shapes] for _ in range(self.timesteps)]

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        h = ops.zeros((ops.shape(x)[0], self.units))
        for x_t, (w, u, b) in zip(ops.unstack(x, axis=1), self.steps, strict=True):
            h = ops.tanh(ops.matmul(x_t, w) + ops.matmul(h, u) + b)
        return h


class WhileLoop(SimpleByHand):
    """Stacked weights, and a loop over them."""

    def build(self, shape: tuple) -> None:
        self.stacks = [self.add_weight(shape=(self.timesteps, *one)) for one in self.shapes(shape[-1])]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        tensors = [tf.transpose(x, (1, 0, 2)), *(ops.convert_to_tensor(stack) for stack in self.stacks)]
        arrays = [tf.TensorArray(tensor.dtype, self.timesteps).unstack(tensor) for tensor in tensors]

        def step(t: tf.Tensor, h: tf.Tensor) -> tuple:
            x_t, w, u, b = (array.read(t) for array in arrays)
            return t + 1, tf.tanh(x_t @ w + h @ u + b)

        start = tf.zeros((tf.shape(x)[0], self.units))
        return tf.while_loop(lambda t, h: True, step, (0, start), maximum_iterations=self.timesteps)[1]
