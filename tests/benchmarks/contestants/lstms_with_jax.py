"""The LSTMs of `lstms` in the libraries that run on JAX."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from lstms import here
from problems import Problem

from contestants.with_jax import Contestant, Untied


class Written(Contestant):
    """One of a module in `lstms`. Subclasses define `leaves(w, u, b)`: the parameters, in JAX's order."""

    module = ""

    def make(self) -> None:
        p = self.problem
        # Only here is the library needed: what is not installed is left out by itself.
        library = importlib.import_module(f"lstms.{self.module}")
        parameters, self.run = library.build(p.timesteps, p.input_dim, p.units, key=jax.random.key(0))
        drawn, self.structure = jax.tree.flatten(parameters)
        self.shapes = [leaf.shape for leaf in drawn]

    def start(self, stacks: list[jax.Array]) -> list[jax.Array]:
        leaves = self.leaves(*stacks)
        assert [leaf.shape for leaf in leaves] == self.shapes
        return leaves

    def state(self, weights: list[jax.Array], x: jax.Array) -> jax.Array:
        return self.run(jax.tree.unflatten(self.structure, weights), x)

    def stacked(self, leaves: list[jax.Array]) -> list[np.ndarray]:
        # `leaves` puts the numbers into another order: the transpose of its derivative puts them back.
        stacks = [jnp.zeros_like(w) for w in self.problem.weights().values()]
        return [np.asarray(w) for w in jax.vjp(self.leaves, *stacks)[1](leaves)]


def gates(w: jax.Array) -> list[jax.Array]:
    """Of i, f, g and o."""
    return jnp.split(w, 4, axis=-1)


class Linen(Written):
    module = "flax_linen"

    def leaves(self, w: jax.Array, u: jax.Array, b: jax.Array) -> list[jax.Array]:
        (w_i, w_f, w_g, w_o), (u_i, u_f, u_g, u_o), (b_i, b_f, b_g, b_o) = map(gates, (w, u, b))
        return [b_f, u_f, b_g, u_g, b_i, u_i, b_o, u_o, w_f, w_g, w_i, w_o]


class NNX(Written):
    module = "flax_nnx"

    def leaves(self, w: jax.Array, u: jax.Array, b: jax.Array) -> list[jax.Array]:
        return [b, u, w]


class Haiku(Written):
    module = "haiku_stack"

    def leaves(self, w: jax.Array, u: jax.Array, b: jax.Array) -> list[jax.Array]:
        (i, f, g, o), (b_i, b_f, b_g, b_o) = gates(jnp.concatenate([w, u], axis=1)), gates(b)
        return [jnp.concatenate(parts, axis=-1) for parts in ((b_i, b_g, b_f - 1, b_o), (i, g, f, o))]

    def current_weights(self) -> list[np.ndarray]:
        w, u, b = super().current_weights()
        units = self.problem.units
        return [w, u, b + np.repeat([0.0, 1.0, 0.0, 0.0], units).astype(b.dtype)]  # the cell adds 1 to b_f


class Equinox(Written):
    module = "equinox_scan"

    def leaves(self, w: jax.Array, u: jax.Array, b: jax.Array) -> list[jax.Array]:
        return [w.mT, u.mT, b]


class Haliax(Written):
    module = "haliax_stacked"

    def leaves(self, w: jax.Array, u: jax.Array, b: jax.Array) -> list[jax.Array]:
        w, b, u = (array.reshape(len(array), 4, self.problem.units, -1) for array in (w.mT, b, u.mT))
        return [w, b[..., 0], u]


class Here(Untied):
    def make(self) -> None:
        p = self.problem
        self.model = here.build(p.timesteps, p.input_dim, p.units)


def contestants(problem: Problem) -> dict[str, tuple]:
    """Name, and its kind and maker."""
    return {
        "flax linen": ("untied", Linen),
        "flax nnx": ("untied", NNX),
        "haiku": ("untied", Haiku),
        "equinox": ("untied", Equinox),
        "haliax": ("untied", Haliax),
        "this layer, JAX": ("ours", Here),
        "this layer, unroll=False, JAX": ("ours", partial(Untied, unroll=False)),
    }
