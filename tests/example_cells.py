"""Cells that `UntiedRNN` runs, and the loop over a list of them that it stands for."""

import keras
from cases import B, I, U
from conftest import DTYPE
from keras import ops


@keras.saving.register_keras_serializable(package="tests")
class LISTACell(keras.Layer):
    """`x' = soft(x W + y B, theta)`, with `theta` learned and `B` a constant."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(self.units, self.units), initializer="orthogonal")
        self.dictionary = self.add_weight(
            name="dictionary", shape=(input_shape[-1], self.units), trainable=False
        )
        self.theta = self.add_weight(name="theta", shape=(1,), initializer=keras.initializers.Constant(0.2))

    def call(self, inputs, states):
        z = ops.matmul(states[0], self.w) + ops.matmul(inputs, self.dictionary)
        x = ops.sign(z) * ops.relu(ops.abs(z) - ops.relu(self.theta))
        return x, [x]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class NestedCell(keras.Layer):
    """A layer within, a state that comes in no list and starts at one, an output of another size."""

    state_size, output_size = U, 2

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(U, activation="tanh", dtype=self.dtype_policy)
        self.head = keras.layers.Dense(self.output_size, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.dense.build((None, input_shape[-1] + U))
        self.head.build((None, U))

    def get_initial_state(self, batch_size=None):
        return [ops.ones((batch_size, U), self.compute_dtype)]

    def call(self, inputs, states, training=False):
        state = self.dense(ops.concatenate([inputs, states[0]], axis=-1))
        return self.head(state), state


def stacked(**options):
    cells = [
        keras.layers.LSTMCell(4, dtype=DTYPE, **options),  # not as many as inputs
        keras.layers.GRUCell(U, dtype=DTYPE, **options),
    ]
    return keras.layers.StackedRNNCells(cells, dtype=DTYPE)


CELLS = {
    "simple": lambda: keras.layers.SimpleRNNCell(U, dtype=DTYPE),
    "gru": lambda: keras.layers.GRUCell(U, dtype=DTYPE),
    "gru, reset before": lambda: keras.layers.GRUCell(U, reset_after=False, dtype=DTYPE),
    "lstm": lambda: keras.layers.LSTMCell(U, dtype=DTYPE),
    "stacked": stacked,
    "lista": lambda: LISTACell(U, dtype=DTYPE),
    "nested": lambda: NestedCell(dtype=DTYPE),
}


class ListOfCells(keras.Layer):
    """What users write: a cell for each weight set in a list, and a loop."""

    def __init__(self, make, stacks, index, **kwargs):
        super().__init__(**kwargs)
        self.index, self.supports_masking = list(index), True
        self.cells = [make() for _ in range(max(self.index) + 1)]
        for s, cell in enumerate(self.cells):
            cell.build((B, I))
            cell.built = True
            cell.set_weights([stack[s] for stack in stacks])
        self.built = True

    def call(self, sequences, initial_state=None, mask=None):
        size = self.cells[0].state_size
        states, output, outputs = initial_state, 0, []
        for t, s in enumerate(self.index):
            nested = keras.tree.pack_sequence_as([size] if isinstance(size, int) else size, states)
            new, after = self.cells[s](sequences[:, t], nested)
            after = keras.tree.flatten(after)
            if mask is not None:
                keep = ops.convert_to_tensor(mask[:, t, None])
                new = ops.where(keep, new, output)
                after = [ops.where(keep, a, b) for a, b in zip(after, states, strict=True)]
            output, states = new, after
            outputs.append(output)
        return (ops.stack(outputs, axis=1), *states)
