"""haiku: each call of `step` by `layer_stack` has its own parameters and its own slice of `x`."""

import haiku as hk
import jax
import jax.numpy as jnp


def untied_lstm(x, units):
    def step(state, x_t):
        _, state = hk.LSTM(units)(x_t, state)
        return state, None

    steps = hk.experimental.layer_stack(x.shape[1], with_per_layer_inputs=True)(step)
    start = hk.LSTM(units).initial_state(x.shape[0])
    state, _ = steps(start, x.swapaxes(0, 1))
    return state.hidden


def build(timesteps: int, inputs: int, units: int, key: jax.Array):
    model = hk.without_apply_rng(hk.transform(lambda x: untied_lstm(x, units)))
    return model.init(key, jnp.zeros((1, timesteps, inputs))), model.apply
