"""equinox: `filter_vmap` makes a cell whose arrays have an axis of timesteps; `jax.lax.scan` runs it."""

import equinox as eqx
import jax
import jax.numpy as jnp


class UntiedLSTM(eqx.Module):
    cells: eqx.nn.LSTMCell

    def __init__(self, timesteps, inputs, units, key):
        keys = jax.random.split(key, timesteps)
        self.cells = eqx.filter_vmap(lambda key: eqx.nn.LSTMCell(inputs, units, key=key))(keys)

    def __call__(self, x):
        arrays, rest = eqx.partition(self.cells, eqx.is_array)

        def step(state, slices):
            x_t, arrays_t = slices
            return eqx.combine(arrays_t, rest)(x_t, state), None

        zeros = jnp.zeros(self.cells.hidden_size)
        (h, _), _ = jax.lax.scan(step, (zeros, zeros), (x, arrays))
        return h


def build(timesteps: int, inputs: int, units: int, key: jax.Array):
    return UntiedLSTM(timesteps, inputs, units, key), lambda model, x: jax.vmap(model)(x)
