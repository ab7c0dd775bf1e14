"""Cells of networks from the literature, written as their users would."""

import keras
import numpy as np
from conftest import DTYPE
from keras import ops

M, N = 3, 5  # of the dictionary `A` in `y = A x`
A = (np.random.default_rng(0).normal(size=(M, N)) / np.sqrt(M)).astype(DTYPE)
TOKENS, WIDTH = 3, 4
IMAGE = (4, 5)


def soft(z, theta):
    return ops.sign(z) * ops.relu(ops.abs(z) - theta)


class SupportSelectionCell(keras.Layer):
    """LISTA-CPSS (Chen et al., 2018): the largest entries are not shrunk, more of them at later steps."""

    state_size = N

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(M, N))
        self.theta = self.add_weight(name="theta", shape=(), initializer=keras.initializers.Constant(0.1))
        self.selected = self.add_weight(name="selected", shape=(), initializer="zeros", trainable=False)

    def call(self, y, states):
        (x,) = states
        z = x + ops.matmul(y - ops.matmul(x, A.T), self.w)
        rank = ops.argsort(ops.argsort(-ops.abs(z)))
        x = ops.where(ops.cast(rank, z.dtype) < self.selected, z, soft(z, self.theta))
        return x, [x]


def lamp_step(y, states, correction, alpha):
    """The estimate, the residual with its Onsager term, and that term's factor."""
    x, v, factor = states
    v = y - ops.matmul(x, A.T) + factor * v
    x = soft(x + correction(v), alpha * ops.norm(v, axis=-1, keepdims=True) / np.sqrt(M))
    factor = ops.sum(ops.cast(ops.not_equal(x, 0), x.dtype), axis=-1, keepdims=True) / M
    return x, [x, v, factor]


class LAMPCell(keras.Layer):
    """Learned approximate message passing (Borgerding, Schniter and Rangan, 2017)."""

    state_size = (N, M, 1)

    def build(self, input_shape):
        self.b = self.add_weight(name="b", shape=(M, N))
        self.alpha = self.add_weight(name="alpha", shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, y, states):
        return lamp_step(y, states, lambda v: ops.matmul(v, self.b), self.alpha)


class TISTACell(keras.Layer):
    """Ito, Takabe and Wadayama, 2019: the only thing learned is one step size."""

    state_size = N
    inverse = np.linalg.pinv(A)
    variance, nonzero, signal = 0.01, 0.3, 1.0

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="ones")

    def call(self, y, states):
        (s,) = states
        residual = y - ops.matmul(s, A.T)
        r = s + self.gamma * ops.matmul(residual, self.inverse.T)
        power = ops.sum(ops.square(residual), axis=-1, keepdims=True)
        v2 = ops.maximum((power - M * self.variance) / float(np.sum(A**2)), 1e-9)
        noise = float(np.sum(self.inverse**2)) * self.variance / N
        tau2 = v2 * (1 + (self.gamma**2 - 2 * self.gamma) * M / N) + self.gamma**2 * noise
        xi = self.signal + tau2
        odds = np.log(self.nonzero / (1 - self.nonzero)) + ops.log(tau2 / xi) / 2
        s = r * self.signal / xi * ops.sigmoid(odds + r**2 / 2 * (1 / tau2 - 1 / xi))
        return s, [s]


class DetNetCell(keras.Layer):
    """Samuel, Diskin and Wiesel, 2017. Its input is a matrix, `H'H` and beside it `H'y`."""

    state_size = (M, 2)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(N, activation="relu")
        self.symbols, self.memory = keras.layers.Dense(M), keras.layers.Dense(2)

    def build(self, input_shape):
        self.slope = self.add_weight(name="slope", shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, inputs, states):
        x, v = states
        gram, matched = inputs[..., :-1], inputs[..., -1]
        projected = ops.squeeze(ops.matmul(gram, x[..., None]), axis=-1)
        z = self.hidden(ops.concatenate([matched, x, projected, v], axis=-1))
        s = self.symbols(z)
        x = -1 + (ops.relu(s + self.slope) - ops.relu(s - self.slope)) / ops.abs(self.slope)
        return x, [x, self.memory(z)]


class CascadeCell(keras.Layer):
    """Schlemper et al., 2017: a network cleans the image, its spectrum moves towards what was measured."""

    state_size = (*IMAGE, 2)  # real and imaginary part

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(3, 3, padding="same", activation="tanh")
        self.second = keras.layers.Conv2D(2, 3, padding="same")

    def build(self, input_shape):
        self.strength = self.add_weight(name="strength", shape=(), initializer="ones")

    def get_initial_state(self, batch_size=None):
        return [ops.ones((batch_size, *self.state_size), self.compute_dtype)]

    def call(self, inputs, states):
        image = states[0] + self.second(self.first(states[0]))
        spectrum = ops.stack(ops.fft2((image[..., 0], image[..., 1])), axis=-1)
        measured, mask = inputs[..., :2], inputs[..., 2:]
        spectrum = spectrum - self.strength * mask * (spectrum - measured)
        image = ops.stack(ops.ifft2((spectrum[..., 0], spectrum[..., 1])), axis=-1)
        return image, [image]


class StrategyCell(keras.Layer):
    """Deep hedging (Buehler et al., 2019): the next holding, from the market and the holding so far."""

    state_size = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = [keras.layers.Dense(units, "tanh") for units in (4, 3)] + [keras.layers.Dense(1)]

    def call(self, market, states):
        holding = ops.concatenate([market, states[0]], axis=-1)
        for layer in self.network:
            holding = layer(holding)
        return holding, [holding]


class BlockCell(keras.Layer):
    """A transformer's block, with depth as time: nothing comes in but the tokens, which are the state."""

    state_size = ((TOKENS, WIDTH),)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, key_dim=3)
        self.norms = [keras.layers.LayerNormalization(), keras.layers.LayerNormalization()]
        self.mlp = [keras.layers.Dense(2 * WIDTH, "gelu"), keras.layers.Dense(WIDTH)]

    def call(self, nothing, states):
        (x,) = states
        z = self.norms[0](x)
        x = x + self.attention(z, z)
        x = x + self.mlp[1](self.mlp[0](self.norms[1](x)))
        return x, [x]


class CellWithHead(keras.Layer):
    def __init__(self, units, outputs):
        super().__init__()
        self.cell, self.head = keras.layers.SimpleRNNCell(units), keras.layers.Dense(outputs)

    def call(self, inputs, states):
        output, states = self.cell(inputs, states)
        return self.head(output), states
