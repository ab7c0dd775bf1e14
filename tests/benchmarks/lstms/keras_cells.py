"""Keras: a list of cells and a loop, in a layer."""

import keras
from keras import ops


class UntiedLSTM(keras.Layer):
    def __init__(self, timesteps, units):
        super().__init__()
        self.cells = [keras.layers.LSTMCell(units) for _ in range(timesteps)]

    def build(self, shape):
        for cell in self.cells:
            cell.build((None, shape[-1]))

    def call(self, x):
        states = self.cells[0].get_initial_state(ops.shape(x)[0])
        for cell, x_t in zip(self.cells, ops.unstack(x, axis=1), strict=True):
            _, states = cell(x_t, states)
        return states[0]


def build(timesteps: int, inputs: int, units: int):
    return keras.Sequential([keras.Input((timesteps, inputs)), UntiedLSTM(timesteps, units)])
