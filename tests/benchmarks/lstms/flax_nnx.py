"""flax nnx: `nnx.vmap` makes a cell whose parameters have an axis of timesteps; `nnx.scan` runs it."""

import jax
import jax.numpy as jnp
from flax import nnx


class UntiedLSTM(nnx.Module):
    def __init__(self, timesteps, inputs, units, rngs):
        @nnx.split_rngs(splits=timesteps)
        @nnx.vmap
        def cells(rngs):
            return nnx.OptimizedLSTMCell(inputs, units, rngs=rngs)

        self.cells = cells(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0, 1), out_axes=nnx.Carry)
        def run(carry, cell, x_t):
            return cell(carry, x_t)[0]

        zeros = jnp.zeros((len(x), self.cells.hidden_features))
        return run((zeros, zeros), self.cells, x)[1]


def build(timesteps: int, inputs: int, units: int, key: jax.Array):
    model = UntiedLSTM(timesteps, inputs, units, nnx.Rngs(key))
    definition, parameters = nnx.split(model)
    return parameters, lambda parameters, x: nnx.merge(definition, parameters, copy=True)(x)
