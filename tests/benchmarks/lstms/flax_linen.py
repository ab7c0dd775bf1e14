"""flax linen: `nn.RNN` hands these arguments on to `nn.scan`."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class UntiedLSTM(nn.Module):
    units: int

    @nn.compact
    def __call__(self, x):
        rnn = nn.RNN(
            nn.OptimizedLSTMCell(self.units),
            variable_axes={"params": 0},
            variable_broadcast=False,
            split_rngs={"params": True},
        )
        return rnn(x)[:, -1]


def build(timesteps: int, inputs: int, units: int, key: jax.Array):
    model = UntiedLSTM(units)
    return model.init(key, jnp.zeros((1, timesteps, inputs))), model.apply
