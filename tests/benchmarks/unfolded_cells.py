"""Cells of algorithms that are unfolded into networks, one cell per iteration."""

import keras
import numpy as np
from keras import layers, ops


def soft(z, theta):
    return ops.sign(z) * ops.relu(ops.abs(z) - theta)


def built(layer, *shape):
    layer.build((None, *shape))
    return layer


class LISTACell(keras.Layer):
    """`x' = soft(y B + x W, theta)` from the measurements `y`, the input (Gregor and LeCun, 2010)."""

    state_size = 500

    def build(self, input_shape):
        self.b = self.add_weight(name="b", shape=(input_shape[-1], self.state_size))
        self.w = self.add_weight(name="w", shape=(self.state_size, self.state_size))
        self.theta = self.add_weight(name="theta", shape=(1,), initializer=keras.initializers.Constant(0.1))

    def call(self, inputs, states):
        x = soft(inputs @ self.b + states[0] @ self.w, self.theta)
        return x, [x]


class LAMPCell(keras.Layer):
    """LISTA with Onsager's term in the residual `v` (Borgerding et al., 2017); `y = x A` is the input."""

    state_size = (500, 250)
    a = np.random.default_rng(0).normal(scale=250**-0.5, size=(500, 250)).astype("float32")

    def build(self, input_shape):
        self.b = self.add_weight(name="b", shape=(input_shape[-1], self.state_size[0]))
        self.theta = self.add_weight(name="theta", shape=(1,), initializer="ones")

    def call(self, inputs, states):
        x, v = states
        # Not zero, where a square root has no gradient.
        noise = ops.sqrt(ops.mean(ops.square(v), axis=-1, keepdims=True) + 1e-12)
        x = soft(x + v @ self.b, self.theta * noise)
        # How many are not zero, but continuous: a rounding error would change a count by one.
        active = ops.stop_gradient(ops.minimum(100 * ops.abs(x), 1))
        onsager = ops.mean(active, axis=-1, keepdims=True) * 2  # 500 / 250
        v = inputs - ops.matmul(x, self.a) + onsager * v
        return x, [x, v]


class DetNetCell(keras.Layer):
    """Detects the signs `x` that a channel `H` has mixed (Samuel et al., 2017).

    `H'y` and `H'H` are the input, flattened and joined.
    """

    state_size = (20, 40)

    def build(self, input_shape):
        signs, memory = self.state_size
        self.hidden = built(layers.Dense(160, "relu"), 3 * signs + memory)
        self.sign, self.memory = built(layers.Dense(signs), 160), built(layers.Dense(memory), 160)
        # Small, or what rounding changes would grow from timestep to timestep.
        self.slope = self.add_weight(name="slope", shape=(1,), initializer=keras.initializers.Constant(0.1))

    def call(self, inputs, states):
        x, v = states
        hy, hh = inputs[:, :20], ops.reshape(inputs[:, 20:], (-1, 20, 20))
        hhx = ops.squeeze(hh @ ops.expand_dims(x, -1), -1)
        hidden = self.hidden(ops.concatenate([hy, hhx, x, v], axis=-1))
        x = ops.clip(self.sign(hidden) * self.slope, -1, 1)
        return x, [x, self.memory(hidden)]


class VarNetCell(keras.Layer):
    """A step towards the measured frequencies less what a small CNN finds (Hammernik et al., 2018).

    The input is the image of the measurements and the mask of the frequencies; all images are flattened.
    """

    state_size = 32 * 32

    def build(self, input_shape):
        first, second = (layers.Conv2D(8, 3, padding="same", activation="relu") for _ in range(2))
        last = layers.Conv2D(1, 3, padding="same")
        channels = zip((first, second, last), (1, 8, 8), strict=True)
        self.cnn = [built(convolution, 32, 32, n) for convolution, n in channels]
        self.rate = self.add_weight(name="rate", shape=(1,), initializer="ones")

    def call(self, inputs, states):
        x, measured, mask = (
            ops.reshape(a, (-1, 32, 32)) for a in (states[0], *ops.split(inputs, 2, axis=-1))
        )
        real, imaginary = ops.fft2((x, ops.zeros_like(x)))
        seen, _ = ops.ifft2((mask * real, mask * imaginary))
        found = ops.expand_dims(x, -1)
        for convolution in self.cnn:
            found = convolution(found)
        x = ops.reshape(x - self.rate * (seen - measured) - ops.squeeze(found, -1), (-1, 32 * 32))
        return x, [x]


class HedgingCell(keras.Layer):
    """A small MLP that trades at each date, from the price and what is held (Buehler et al., 2019)."""

    state_size = 1

    def build(self, input_shape):
        self.first = built(layers.Dense(20, "relu"), input_shape[-1] + self.state_size)
        self.second = built(layers.Dense(20, "relu"), 20)
        self.last = built(layers.Dense(self.state_size), 20)

    def call(self, inputs, states):
        x = self.last(self.second(self.first(ops.concatenate([inputs, states[0]], axis=-1))))
        return x, [x]
