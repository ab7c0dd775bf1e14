"""The untied recurrence as pure functions on tensors, all of them time-major: `(timesteps, batch, ...)`.

Each timestep computes all that is its own, input projection and weight gradients included, while its weights
and its state are in the cache. One batched product over all timesteps for each of them would write stacks of
`(timesteps, batch, units)` to memory and read them again: measured on 2 cores at 784 timesteps of 128 units,
TensorFlow takes 1.1 to 1.3 times as long for that, and half as much memory again.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from untied_rnn.scan import scan

Tensor = Any
Tensors = list[Any]

# f'(a) as a function of h = f(a): all that the hand-written gradient needs to know about f.
_SLOPES = {
    keras.activations.linear: ops.ones_like,
    keras.activations.tanh: lambda h: 1 - h * h,
    keras.activations.sigmoid: lambda h: h * (1 - h),
    keras.activations.relu: lambda h: ops.cast(h > 0, h.dtype),
}


def affine(inputs: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x_t W_t + b_t` for all timesteps at once, or for one.

    Args:
        inputs: `(timesteps, batch, input_dim)`, or `(batch, input_dim)`.
        kernel: `(timesteps, input_dim, units)`, or `(input_dim, units)`.
        bias: `(timesteps, units)`, or `(units,)`, or `None`.

    Returns:
        A tensor of shape `(timesteps, batch, units)`, or `(batch, units)`.
    """
    outputs = ops.matmul(inputs, kernel)
    return outputs if bias is None else outputs + ops.expand_dims(bias, -2)


def simple_recurrence(
    inputs: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    recurrent_kernel: Tensor,
    initial_state: Tensor,
    activation: Callable[[Tensor], Tensor],
    mask: Tensor | None = None,
    state_dropout: Tensor | None = None,
    return_sequences: bool = True,
    unroll: bool | int = False,
) -> Tensor:
    """`h_t = activation(x_t W_t + b_t + (h_{t-1} * d) U_t)`, and `h_{t-1}` where the mask is `False`.

    Args:
        inputs: `x`, `(timesteps, batch, input_dim)`.
        kernel: `W`, `(timesteps, input_dim, units)`.
        bias: `b`, `(timesteps, units)` or `None`.
        recurrent_kernel: `U`, `(timesteps, units, units)`.
        initial_state: `h_0`, `(batch, units)`.
        activation: Function of a tensor.
        mask: Boolean, `(timesteps, batch, 1)`.
        state_dropout: `d`, `(batch, units)`: one dropout mask for all timesteps.
        return_sequences: Whether to return all states or the last one.
        unroll: See `untied_rnn.scan.scan`.

    Returns:
        `(timesteps, batch, units)` with `return_sequences`, else `(batch, units)`.
    """
    # Along time as well, so that it reaches the steps as all else does and is not captured by them.
    dropout = None
    if state_dropout is not None:
        dropout = ops.broadcast_to(state_dropout, (ops.shape(inputs)[0], *ops.shape(state_dropout)))

    def dropped(state: Tensor, drop: Tensor | None) -> Tensor:
        return state if drop is None else state * drop

    def step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        (previous,), (keep, drop, recurrent_kernel, inputs, kernel, *bias) = carry, x
        state = activation(
            affine(inputs, kernel, *bias) + ops.matmul(dropped(previous, drop), recurrent_kernel)
        )
        state = state if keep is None else ops.where(keep, state, previous)
        return [state], [state]

    def recording_step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        after, states = step(carry, x)
        return after, [*carry, *(states if return_sequences else [])]

    def backward_step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        """All gradients of one timestep from `delta_t = dL/da_t`; its state comes from the one after."""
        (gradient, state), (arriving, previous, *x) = carry, x
        keep, drop, recurrent_kernel, inputs, kernel, *bias = x
        gradient = gradient if arriving is None else gradient + arriving
        delta = gradient * _SLOPES[activation](state)
        delta = delta if keep is None else ops.where(keep, delta, 0)
        earlier = dropped(ops.matmul(delta, ops.transpose(recurrent_kernel)), drop)
        earlier = earlier if keep is None else ops.where(keep, earlier, gradient)
        return [earlier, previous], [
            ops.matmul(ops.transpose(dropped(previous, drop)), delta),
            ops.matmul(delta, ops.transpose(kernel)),
            ops.matmul(ops.transpose(inputs), delta),
            *(ops.sum(delta, axis=0) for _ in bias),
        ]

    @ops.custom_gradient
    def with_lean_gradient(initial_state: Tensor, *tensors: Tensor) -> tuple[Tensor, Callable]:
        """Keeps `h_{t-1}` of each step and nothing else for the gradient."""
        xs = [mask, dropout, *tensors]
        recorded = [initial_state.shape] * (2 if return_sequences else 1)
        (last,), (previous, *states) = scan(
            recording_step, [initial_state], xs, unroll=unroll, y_shapes=recorded
        )

        def gradient(upstream: Tensor) -> tuple[Tensor, ...]:
            at_end, arriving = (ops.zeros_like(last), upstream) if return_sequences else (upstream, None)
            (d_initial_state, _), d_tensors = scan(
                backward_step,
                [at_end, last],
                [arriving, previous, *xs],
                reverse=True,
                unroll=unroll,
                y_shapes=[tensor.shape[1:] for tensor in tensors],
            )
            return d_initial_state, *d_tensors

        return (states[0] if return_sequences else last), gradient

    tensors = [recurrent_kernel, inputs, kernel, *([] if bias is None else [bias])]
    # Not on torch: what a custom gradient captures there is cut off from the graph, so second-order
    # gradients would be wrong without a word.
    if unroll is not True and activation in _SLOPES and keras.backend.backend() != "torch":
        return with_lean_gradient(initial_state, *tensors)
    (last,), (states,) = scan(step, [initial_state], [mask, dropout, *tensors], unroll=unroll)
    return states if return_sequences else last


def hold(outputs: Tensor, mask: Tensor, unroll: bool | int = False) -> Tensor:
    """Repeats the last unmasked output at masked timesteps; zeros before the first one.

    Args:
        outputs: `(timesteps, batch, features)`.
        mask: Boolean, `(timesteps, batch, 1)`.
        unroll: See `untied_rnn.scan.scan`.
    """

    def step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        (held,), (output, keep) = carry, x
        output = ops.where(keep, output, held)
        return [output], [output]

    return scan(step, [ops.zeros_like(outputs[0])], [outputs, mask], unroll=unroll)[1][0]
