"""Untied recurrences as users write them in a `keras.Layer` of their own."""

import keras
import tensorflow as tf
from keras import ops


class ListOfCells(keras.Layer):
    """A cell for each timestep."""

    def __init__(self, cell: type[keras.Layer], units: int, timesteps: int):
        super().__init__()
        self.cells = [cell(units) for _ in range(timesteps)]

    def build(self, shape: tuple) -> None:
        for cell in self.cells:
            cell.build((None, shape[-1]))

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        states = self.cells[0].get_initial_state(ops.shape(x)[0])
        for cell, x_t in zip(self.cells, ops.unstack(x, axis=1), strict=True):
            _, states = cell(x_t, states)
        return states[0]


class VariablePerTimestep(keras.Layer):
    """Three weights for each timestep of the simple cell."""

    def __init__(self, units: int, timesteps: int):
        super().__init__()
        self.units, self.timesteps = units, timesteps

    def build(self, shape: tuple) -> None:
        shapes = (shape[-1], self.units), (self.units, self.units), (self.units,)
        self.steps = [[self.add_weight(shape=shape) for shape in shapes] for _ in range(self.timesteps)]

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        h = ops.zeros((ops.shape(x)[0], self.units))
        for x_t, (w, u, b) in zip(ops.unstack(x, axis=1), self.steps, strict=True):
            h = ops.tanh(ops.matmul(x_t, w) + ops.matmul(h, u) + b)
        return h


class WhileLoop(keras.Layer):
    """Stacked weights of the simple cell, and a loop over them."""

    def __init__(self, units: int, timesteps: int):
        super().__init__()
        self.units, self.timesteps = units, timesteps

    def build(self, shape: tuple) -> None:
        shapes = (shape[-1], self.units), (self.units, self.units), (self.units,)
        self.stacks = [self.add_weight(shape=(self.timesteps, *shape)) for shape in shapes]

    def call(self, x: tf.Tensor) -> tf.Tensor:
        tensors = [tf.transpose(x, (1, 0, 2)), *(ops.convert_to_tensor(stack) for stack in self.stacks)]
        arrays = [tf.TensorArray(tensor.dtype, self.timesteps).unstack(tensor) for tensor in tensors]

        def step(t: tf.Tensor, h: tf.Tensor) -> tuple:
            x_t, w, u, b = (array.read(t) for array in arrays)
            return t + 1, tf.tanh(x_t @ w + h @ u + b)

        start = tf.zeros((tf.shape(x)[0], self.units))
        return tf.while_loop(lambda t, h: True, step, (0, start), maximum_iterations=self.timesteps)[1]
