"""JAX: this layer on Keras's JAX backend, and `jax.lax.scan` over stacked weights."""

from functools import partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
from cells import CELLS
from problems import EPSILON, RHO, WEIGHTS, Problem

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

LAYERS = {"simple": UntiedSimpleRNN, "lstm": UntiedLSTM, "gru": UntiedGRU}


class Contestant:
    """Subclasses define `state(weights, x)`; the weights are a list of W, U and b."""

    def __init__(self, problem: Problem, unroll: int | bool | str = False):
        self.problem = problem
        self.unroll = unroll
        self.x, self.y = map(jnp.asarray, problem.data())
        self.make()
        stacked = problem.weights()
        self.weights = [jnp.asarray(stacked[name]) for name in WEIGHTS]
        self.mean_squares = [jnp.zeros_like(w) for w in self.weights]
        self._forward = jax.jit(self.state)
        self._gradients = jax.jit(jax.value_and_grad(self.loss))
        self._step = jax.jit(self.update, donate_argnums=(0, 1))

    def make(self) -> None:
        pass

    def loss(self, weights: list, x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean(jnp.sum((self.state(weights, x) - y) ** 2, axis=1)) / 2

    def update(self, weights: list, mean_squares: list, x: jax.Array, y: jax.Array) -> tuple:
        loss, gradients = jax.value_and_grad(self.loss)(weights, x, y)
        mean_squares = [RHO * m + (1 - RHO) * g * g for m, g in zip(mean_squares, gradients, strict=True)]
        steps = [
            self.problem.learning_rate * g * jax.lax.rsqrt(m + EPSILON)
            for m, g in zip(mean_squares, gradients, strict=True)
        ]
        return loss, [w - s for w, s in zip(weights, steps, strict=True)], mean_squares

    def forward(self) -> jax.Array:
        return self._forward(self.weights, self.x).block_until_ready()

    def gradients(self) -> list:
        return jax.block_until_ready(self._gradients(self.weights, self.x, self.y))[1]

    def step(self) -> None:
        _, self.weights, self.mean_squares = jax.block_until_ready(
            self._step(self.weights, self.mean_squares, self.x, self.y)
        )

    def results(self) -> dict[str, np.ndarray]:
        state, gradients = self.forward(), self.gradients()
        self.step()
        return {
            "state": np.asarray(state),
            **{f"gradient of {name}": np.asarray(g) for name, g in zip(WEIGHTS, gradients, strict=True)},
            **{f"updated {name}": np.asarray(w) for name, w in zip(WEIGHTS, self.weights, strict=True)},
        }


class Untied(Contestant):
    def make(self) -> None:
        p = self.problem
        layer = LAYERS[p.cell](p.units, unroll=self.unroll)
        self.model = keras.Sequential([keras.Input((p.timesteps, p.input_dim)), layer])

    def state(self, weights: list, x: jax.Array) -> jax.Array:
        rest = [v.value for v in self.model.non_trainable_variables]
        return self.model.stateless_call(weights, rest, x)[0]


def simple_step(states: tuple, slices: tuple) -> tuple:
    (h,), (x, w, u, b) = states, slices
    return (jnp.tanh(x @ w + h @ u + b),), None


def lstm_step(states: tuple, slices: tuple) -> tuple:
    (h, c), (x, w, u, b) = states, slices
    i, f, g, o = jnp.split(x @ w + h @ u + b, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None


def gru_step(states: tuple, slices: tuple) -> tuple:
    (h,), (x, w, u, b) = states, slices
    x_z, x_r, x_g = jnp.split(x @ w + b[0], 3, axis=-1)
    h_z, h_r, h_g = jnp.split(h @ u + b[1], 3, axis=-1)
    z = jax.nn.sigmoid(x_z + h_z)
    return (z * h + (1 - z) * jnp.tanh(x_g + jax.nn.sigmoid(x_r + h_r) * h_g),), None


STEPS = {"simple": simple_step, "lstm": lstm_step, "gru": gru_step}


class Scan(Contestant):
    def state(self, weights: list, x: jax.Array) -> jax.Array:
        p = self.problem
        states = (jnp.zeros((p.batch, p.units)),) * CELLS[p.cell].states
        slices = (jnp.swapaxes(x, 0, 1), *weights)
        return jax.lax.scan(STEPS[p.cell], states, slices, unroll=self.unroll or 1)[0][0]


def contestants(problem: Problem) -> dict[str, tuple]:
    """What this library enters: name, and its kind and maker."""
    found = {
        "this layer, JAX": ("ours", partial(Untied, unroll="auto")),
        "jax.lax.scan": ("untied", Scan),
        "jax.lax.scan, unroll=4": ("untied", partial(Scan, unroll=4)),
    }
    if problem.timesteps * CELLS[problem.cell].gates <= 120:  # far beyond, its compilation takes minutes
        found["jax.lax.scan, unrolled"] = ("untied", partial(Scan, unroll=True))
    return found
