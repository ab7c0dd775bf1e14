"""Cells that read variables that are not their own: all timesteps share them."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, T
from conftest import BACKEND, DTYPE, EXACT
from keras import ops

from untied_rnn import UntiedRNN
from untied_rnn.sharing import Periodic

forms = pytest.mark.parametrize("unroll", [False, True])


class ReadsAnother(keras.Layer):
    """All timesteps share a scale that is not the cell's."""

    state_size = I

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.read = lambda: scale

    def build(self, input_shape):
        self.w = self.add_weight(shape=(I,), initializer="ones")

    def call(self, inputs, states):
        state = self.w * self.read() * (inputs + states[0])
        return state, [state]


@pytest.mark.parametrize(("unroll", "shared"), [(False, {"sharing": Periodic(2)}), (True, {})])
def test_a_variable_from_outside_is_trained(unroll, shared, rng):
    scale = keras.Variable(np.full((1,), 0.5), dtype="float32")

    class Surrounding(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = scale
            self.rnn = UntiedRNN(ReadsAnother(scale), unroll=unroll, return_sequences=True, **shared)

        def call(self, inputs):
            return self.rnn(inputs)

    x = rng.normal(size=(B, T, I)).astype("float32")
    model = Surrounding()
    model(x)
    model.compile(keras.optimizers.SGD(1.0), "mean_absolute_error", jit_compile=BACKEND == "jax")
    model.fit(x, np.full(x.shape, 100.0), verbose=0, batch_size=B)

    def loss(scale):
        state, total = 0, 0
        for t in range(T):
            state = scale * (x[:, t].astype("float64") + state)
            total += np.abs(100 - state).sum()
        return total / x.size

    slope = (loss(0.5 + 1e-3) - loss(0.5 - 1e-3)) / 2e-3
    np.testing.assert_allclose(0.5 - ops.convert_to_numpy(scale), slope, rtol=1e-2)
    # ... and at inference the value that it has now counts.
    np.testing.assert_allclose(
        to_numpy(model(x))[0][:, 0],
        ops.convert_to_numpy(scale) * x[:, 0] * model.rnn.get_weights()[0][0],
        rtol=1e-5,
    )


class ReadsACounter(ReadsAnother):
    """An integer from outside, and with `and_another` a variable that it reads from then on."""

    and_another = None

    def call(self, inputs, states):
        state = self.w * ops.cast(self.read(), inputs.dtype) * (inputs + states[0])
        return (state if self.and_another is None else state + self.and_another), [state]


@forms
def test_an_integer_from_outside_has_its_value(unroll, rng):
    counter = keras.Variable(2, dtype="int32", trainable=False)
    cell = ReadsACounter(counter)
    layer = UntiedRNN(cell, unroll=unroll, return_sequences=True)
    x = rng.normal(size=(B, 2, I)).astype("float32")
    for value in (2, 3):
        counter.assign(value)
        outputs, gradients = (
            outputs_and_gradients(layer, x, [np.ones(x.shape)])
            if layer.built
            else (
                to_numpy(layer(x)),
                None,
            )
        )
        expected = value * x[:, 1] + value * value * x[:, 0]
        np.testing.assert_allclose(outputs[0][:, 1], expected, rtol=1e-5, atol=1e-6)
    (w,) = (gradients[key] for key in gradients if key != "x")
    np.testing.assert_allclose(w[1], (9 * x[:, 0] + 3 * x[:, 1]).sum(axis=0), rtol=1e-4, atol=1e-5)


def test_a_variable_that_was_not_read_before_is_an_error(rng):
    counter = keras.Variable(2, dtype="int32", trainable=False)
    layer = UntiedRNN(ReadsACounter(counter), jit_compile=False)
    layer.build((B, T, I))
    ReadsACounter.and_another = keras.Variable(1.0, name="late")
    try:
        with pytest.raises(NotImplementedError, match="had not read 'late' when the layer was built"):
            layer(rng.normal(size=(B, T, I)).astype("float32"))
    finally:
        ReadsACounter.and_another = None


# Second derivatives.


class ReadsTwo(keras.Layer):
    """Reads a trained variable and an integer, and is as nonlinear in the first as in its own weight."""

    state_size = I

    def __init__(self, scale, counter):
        super().__init__(dtype=DTYPE)
        self.read = lambda: (scale, counter)

    def build(self, input_shape):
        self.w = self.add_weight(shape=(I,), initializer="random_normal")

    def call(self, inputs, states):
        scale, counter = self.read()
        state = ops.tanh(self.w * scale * (inputs + ops.cast(counter, inputs.dtype) * states[0]))
        return state, [state]


class ListOfCells(keras.Layer):
    def __init__(self, cells, index):
        super().__init__(dtype=DTYPE)
        self.cells, self.index = cells, index

    def call(self, sequences):
        state, outputs = ops.zeros_like(sequences[:, 0]), []
        for t, i in enumerate(self.index):
            _, (state,) = self.cells[i](sequences[:, t], [state])
            outputs.append(state)
        return ops.stack(outputs, axis=1)


class Owner(keras.Layer):
    """Has the variables that the cells within read."""

    def __init__(self, make):
        super().__init__(dtype=DTYPE)
        self.scale = self.add_weight(name="scale", shape=(I,), initializer=keras.initializers.Constant(0.7))
        self.counter = keras.Variable(2, dtype="int32", trainable=False)
        self.inner = make(lambda: ReadsTwo(self.scale, self.counter))

    def call(self, sequences):
        return self.inner(sequences)


def gradients_of_a_penalty(layer, x):
    """Of the squares of the gradient of `sum(outputs^3)` to `x`, to all trainable variables."""
    x, variables = ops.convert_to_tensor(x, DTYPE), layer.trainable_variables
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(layer(x) ** 3)
            penalty = tf.reduce_sum(inner.gradient(value, x) ** 2)
        found = outer.gradient(penalty, [variable.value for variable in variables])
    elif BACKEND == "jax":
        import jax

        fixed = [variable.value for variable in layer.non_trainable_variables]

        def penalty(values):
            gradient = jax.grad(lambda x: (layer.stateless_call(values, fixed, x)[0] ** 3).sum())(x)
            return (gradient**2).sum()

        found = jax.jit(jax.grad(penalty))([variable.value for variable in variables])
    else:
        import torch

        x.requires_grad_()
        (gradient,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
        found = torch.autograd.grad((gradient**2).sum(), [variable.value for variable in variables])
    return to_numpy(found)


@pytest.mark.parametrize(
    ("unroll", "options", "index"), [(True, {}, range(T)), (False, {"sharing": Periodic(2)}, [0, 1, 0, 1])]
)
def test_second_derivatives_are_those_of_a_list_of_cells(unroll, options, index, rng):
    x = rng.normal(size=(B, T, I))
    owner = Owner(lambda make: UntiedRNN(make(), return_sequences=True, unroll=unroll, **options))
    loop = Owner(lambda make: ListOfCells([make() for _ in range(max(index) + 1)], index))
    for each in (owner, loop):
        each(keras.KerasTensor(x.shape, DTYPE))  # builds it
    for cell, value in zip(loop.inner.cells, owner.inner.get_weights()[0], strict=True):
        cell.w.assign(value)
    scale, w = gradients_of_a_penalty(owner, x)
    expected, *sets = gradients_of_a_penalty(loop, x)
    np.testing.assert_allclose(scale, expected, **EXACT)
    np.testing.assert_allclose(w, np.stack(sets), **EXACT)
