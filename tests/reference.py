"""What the layers must compute, as plain NumPy loops, and derivatives without calculus.

Nothing here is shared with the library: one loop over timesteps, and gradients of that same loop by
the complex-step method, Im f(x + ih) / h, which has no cancellation and is exact to rounding.
"""

import numpy as np


def linear(a):
    return a


def relu(a):
    return np.where(a.real > 0, a, 0)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def softsign(a):
    return a / (1 + np.where(a.real > 0, a, -a))


def simple_rnn(
    x,
    state,
    kernel,
    recurrent_kernel,
    bias=None,
    output_kernel=None,
    output_bias=None,
    *,
    activation=np.tanh,
    output_activation=linear,
    mask=None,
    go_backwards=False,
    zero_output_for_mask=False,
    input_dropout=1.0,
    state_dropout=1.0,
):
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


def lstm_step(x, states, kernel, recurrent_kernel, bias=0):
    h, c = states
    i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(x, states, kernel, recurrent_kernel, bias=(0, 0)):
    """With `reset_after`."""
    (h,) = states
    p, q = x @ kernel + bias[0], h @ recurrent_kernel + bias[1]
    units = h.shape[-1]
    z, r = np.split(sigmoid(p + q)[:, : 2 * units], 2, axis=-1)
    g = np.tanh(p[:, 2 * units :] + r * q[:, 2 * units :])
    return [z * h + (1 - z) * g]


def gru_step_reset_before(x, states, kernel, recurrent_kernel, bias=0):
    (h,) = states
    units = h.shape[-1]
    p, u = x @ kernel + bias, recurrent_kernel
    z, r = np.split(sigmoid(p[:, : 2 * units] + h @ u[:, : 2 * units]), 2, axis=-1)
    g = np.tanh(p[:, 2 * units :] + (r * h) @ u[:, 2 * units :])
    return [z * h + (1 - z) * g]


def rnn(step, x, states, weights, index, mask=None, go_backwards=False, zero_output_for_mask=False):
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


def gradients(loss, arrays, step=1e-30):
    """Derivative of the real function `loss(**arrays)` to every element of every array."""
    result = {}
    for name, array in arrays.items():
        gradient = np.empty(array.shape)
        for index in np.ndindex(array.shape):
            moved = array.astype(complex)
            moved[index] += 1j * step
            gradient[index] = loss(**{**arrays, name: moved}).imag / step
        result[name] = gradient
    return result
