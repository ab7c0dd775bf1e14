"""What the layers must compute, as plain NumPy loops, and derivatives without calculus.

Nothing here is shared with the layers: one loop over timesteps, and derivatives of that same loop by
the complex-step method, Im f(x + ih) / h, which has no cancellation and is exact to rounding.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

Array = np.ndarray
Function = Callable[[Array], Array]
# Inputs of a timestep, states and weights by name, to the new states.
Step = Callable[..., list[Array]]


def linear(a: Array) -> Array:
    return a


def relu(a: Array) -> Array:
    return np.where(a.real > 0, a, 0)


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def softsign(a: Array) -> Array:
    return a / (1 + np.where(a.real > 0, a, -a))


def dense(x: Array, kernel: Array, bias: Array | None = None, activation: Function = linear) -> Array:
    """Outputs `(batch, timesteps, units)`."""
    products = [x[:, t] @ kernel[t] + (0 if bias is None else bias[t]) for t in range(x.shape[1])]
    return activation(np.stack(products, axis=1))


def simple_rnn(
    x: Array,
    state: Array,
    kernel: Array,
    recurrent_kernel: Array,
    bias: Array | None = None,
    output_kernel: Array | None = None,
    output_bias: Array | None = None,
    *,
    activation: Function = np.tanh,
    output_activation: Function = linear,
    mask: Array | None = None,
    go_backwards: bool = False,
    zero_output_for_mask: bool = False,
    input_dropout: Any = 1.0,
    state_dropout: Any = 1.0,
) -> tuple[Array, Array]:
    """Outputs `(batch, timesteps, features)` and the last state `(batch, units)`."""
    batch, timesteps, _ = x.shape
    order = range(timesteps)[::-1] if go_backwards else range(timesteps)
    features = (recurrent_kernel if output_kernel is None else output_kernel).shape[-1]
    output, outputs = np.zeros((batch, features)), []
    for weight_set, t in enumerate(order):
        a = (x[:, t] * input_dropout) @ kernel[weight_set]
        a = a + (state * state_dropout) @ recurrent_kernel[weight_set]
        new_state = activation(a if bias is None else a + bias[weight_set])
        new_output = new_state
        if output_kernel is not None:
            y = new_state @ output_kernel[weight_set]
            new_output = output_activation(y if output_bias is None else y + output_bias[weight_set])
        keep = np.ones((batch, 1), bool) if mask is None else mask[:, t, None]
        state = np.where(keep, new_state, state)
        output = np.where(keep, new_output, output)
        outputs.append(np.where(keep, output, 0) if zero_output_for_mask else output)
    return np.stack(outputs, axis=1), state


def lstm_step(
    x: Array, states: list[Array], kernel: Array, recurrent_kernel: Array, bias: Any = 0
) -> list[Array]:
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(
    x: Array, states: list[Array], kernel: Array, recurrent_kernel: Array, bias: Any = (0, 0)
) -> list[Array]:
    """With `reset_after`."""
    (h,) = states
    p, q = x @ kernel + bias[0], h @ recurrent_kernel + bias[1]
    units = h.shape[-1]
    z, r = np.split(sigmoid(p + q)[:, : 2 * units], 2, axis=-1)
    g = np.tanh(p[:, 2 * units :] + r * q[:, 2 * units :])
    return [z * h + (1 - z) * g]


def gru_step_reset_before(
    x: Array, states: list[Array], kernel: Array, recurrent_kernel: Array, bias: Any = 0
) -> list[Array]:
    (h,) = states
    units = h.shape[-1]
    p, u = x @ kernel + bias, recurrent_kernel
    z, r = np.split(sigmoid(p[:, : 2 * units] + h @ u[:, : 2 * units]), 2, axis=-1)
    g = np.tanh(p[:, 2 * units :] + (r * h) @ u[:, 2 * units :])
    return [z * h + (1 - z) * g]


def rnn(
    step: Step,
    x: Array,
    states: list[Array],
    weights: dict[str, Array],
    index: Iterable[int],
    mask: Array | None = None,
    go_backwards: bool = False,
    zero_output_for_mask: bool = False,
) -> tuple[Array, list[Array]]:
    """Outputs `(batch, timesteps, units)`, the first of the states, and the last states.

    Timestep `t` of the processing uses `weights[name][index[t]]`.
    """
    timesteps = x.shape[1]
    order = range(timesteps)[::-1] if go_backwards else range(timesteps)
    output, outputs = np.zeros(states[0].shape), []
    for s, t in zip(index, order, strict=True):
        new = step(x[:, t], states, **{name: stack[s] for name, stack in weights.items()})
        keep = np.ones((x.shape[0], 1), bool) if mask is None else mask[:, t, None]
        output = np.where(keep, new[0], output)
        states = [np.where(keep, a, b) for a, b in zip(new, states, strict=True)]
        outputs.append(np.where(keep, output, 0) if zero_output_for_mask else output)
    return np.stack(outputs, axis=1), states


def slope(function: Callable[..., Array], arrays: dict[str, Array], name: str, direction: Array) -> Array:
    """Derivative of the real `function(**arrays)` as the array `name` moves along `direction`."""
    step = 1e-30
    return function(**{**arrays, name: arrays[name] + 1j * step * direction}).imag / step
