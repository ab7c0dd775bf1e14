"""JAX: this layer on Keras's JAX backend, and `jax.lax.scan` over stacked weights."""

import time
from functools import cache, partial

import jax
import jax.numpy as jnp
import keras
import numpy as np
from cells import CELLS
from problems import EPSILON, RHO, WEIGHTS, Problem

from contestants.fitting import Fitting
from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

LAYERS = {"simple": UntiedSimpleRNN, "lstm": UntiedLSTM, "gru": UntiedGRU}


class Contestant:
    """Subclasses define `state(weights, x)`; the weights are a list of W, U and b, in one piece or many."""

    tied = False

    def __init__(self, problem: Problem, unroll: int | bool | str = False):
        self.problem = problem
        self.unroll = unroll
        self.x, self.y = map(jnp.asarray, problem.data())
        self.make()
        stacks = problem.weights()
        self.weights = self.start([jnp.asarray(stacks[name]) for name in WEIGHTS])
        self.mean_squares = [jnp.zeros_like(w) for w in self.weights]
        self._forward = jax.jit(self.state)
        self._gradients = jax.jit(jax.value_and_grad(self.loss))
        self._step = jax.jit(self.update, donate_argnums=(0, 1))

    def make(self) -> None:
        pass

    def start(self, stacks: list[jax.Array]) -> list[jax.Array]:
        """`self.weights` before the first step, from W, U and b."""
        return stacks

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
            **{f"gradient of {name}": g for name, g in zip(WEIGHTS, self.stacked(gradients), strict=True)},
            **{f"updated {name}": w for name, w in zip(WEIGHTS, self.current_weights(), strict=True)},
        }

    def current_weights(self) -> list[np.ndarray]:
        return self.stacked(self.weights)

    def stacked(self, arrays: list[jax.Array]) -> list[np.ndarray]:
        """W, U and b, each as one array, from a list like `self.weights`."""
        return [np.asarray(array) for array in arrays]


class Untied(Contestant):
    def make(self) -> None:
        p = self.problem
        layer = LAYERS[p.cell](p.units, unroll=self.unroll)
        self.model = keras.Sequential([keras.Input((p.timesteps, p.input_dim)), layer])

    def state(self, weights: list, x: jax.Array) -> jax.Array:
        rest = [v.value for v in self.model.non_trainable_variables]
        return self.model.stateless_call(weights, rest, x)[0]


class UntiedFit(Fitting, Untied):
    def make(self) -> None:
        super().make()
        weights = self.problem.weights()
        self.model.set_weights([weights[name] for name in WEIGHTS])

    def current_weights(self) -> list[np.ndarray]:
        return self.model.get_weights()


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


@cache
def bandwidth() -> float:
    """Bytes a second that the device moves, read and written, where it passes over an array in its place."""
    array = jnp.ones(2**28 if jax.default_backend() == "gpu" else 2**20)
    negate = jax.jit(jnp.negative, donate_argnums=0)
    for calls in (1, 20):  # the first to compile
        start = time.perf_counter()
        for _ in range(calls):
            array = negate(array)
        array.block_until_ready()
        seconds = (time.perf_counter() - start) / calls
    return 2 * array.nbytes / seconds


class Products:
    """The floor: the matrix products of a training step, and the memory traffic of the optimizer.

    The recurrence's products follow one another, with a sum or a repetition in place of the cell; the other
    products are batched over the timesteps. The update reads the weight, its mean square and its gradient
    and writes two of them, which is not run but worked out from the `bandwidth`.
    """

    def __init__(self, problem: Problem):
        p, width = problem, problem.units * CELLS[problem.cell].gates
        sizes = [(p.batch, p.input_dim), (p.batch, p.units), (p.batch, width), (p.input_dim, width)]
        rng = np.random.default_rng(0)
        x, h, delta, w, u = (
            rng.standard_normal((p.timesteps, *size), dtype="float32") for size in (*sizes, (p.units, width))
        )
        u /= width**0.5  # the states of the chains neither grow nor shrink
        self.operands = [jnp.asarray(array) for array in (x, h, delta, w, u)]
        self.update_seconds = 5 * sum(array.nbytes for array in self.operands[3:]) / bandwidth()
        self._forward, self._step = jax.jit(self.forward_products), jax.jit(self.all_products)

    @staticmethod
    def forward_products(x: jax.Array, h: jax.Array, delta: jax.Array, w: jax.Array, u: jax.Array) -> list:
        def recurrence(state: jax.Array, u: jax.Array) -> tuple:
            return (state @ u).reshape(*state.shape, -1).sum(-1), None

        return [x @ w, jax.lax.scan(recurrence, h[0], u, unroll=28)[0]]

    def all_products(self, x: jax.Array, h: jax.Array, delta: jax.Array, w: jax.Array, u: jax.Array) -> list:
        def recurrence(state: jax.Array, u: jax.Array) -> tuple:
            return jnp.tile(state @ u.T, u.shape[1] // u.shape[0]), None

        forward = self.forward_products(x, h, delta, w, u)
        backward = jax.lax.scan(recurrence, delta[0], u, unroll=28)[0]
        return [*forward, backward, x.mT @ delta, h.mT @ delta]

    def forward(self) -> None:
        jax.block_until_ready(self._forward(*self.operands))

    def step(self) -> None:
        jax.block_until_ready(self._step(*self.operands))


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


def gpu_contestants(problem: Problem) -> dict[str, tuple]:
    """What `gpu.py` enters from this library: name, and its stage, mode and maker."""
    written_out = "slow" if problem.timesteps > 100 else "form"  # to compile
    return {
        "this layer, JAX": ("default", "step", partial(Untied, unroll="auto")),
        "this layer, JAX fit": ("default", "fit", partial(UntiedFit, unroll="auto")),
        "jax.lax.scan": ("peer", "step", Scan),
        **{
            f"jax.lax.scan, unroll={unroll}": ("peer", "step", partial(Scan, unroll=unroll))
            for unroll in (4, 8)
            if unroll < problem.timesteps
        },
        "products alone, JAX": ("form", "floor", Products),
        **{
            f"this layer, unroll={unroll}, JAX": ("form", "step", partial(Untied, unroll=unroll))
            for unroll in (4, 8, False)
            if unroll < problem.timesteps
        },
        "this layer, unroll=True, JAX": (written_out, "step", partial(Untied, unroll=True)),
        "jax.lax.scan, unrolled": (written_out, "step", partial(Scan, unroll=True)),
    }


def description() -> tuple[str, bool]:
    """Versions, device and precision; whether the device is a GPU."""
    device = jax.devices()[0]
    on_gpu = device.platform == "gpu"
    precision = jax.config.jax_default_matmul_precision or "as XLA chooses"
    return (
        f"JAX {jax.__version__}, Keras {keras.__version__}, "
        f"{device.client.platform_version.splitlines()[0]}, "
        f"on {device.device_kind if on_gpu else 'the CPU'}, precision of products {precision}; "
        f"passes over memory at {bandwidth() / 1e9:.0f} GB/s"
    ), on_gpu
