"""The untied recurrence as pure functions on tensors, all of them time-major: `(timesteps, batch, ...)`.

Only `h_{t-1} U_t` and the activation are sequential. In a loop everything else, forward and backward, is
one batched matrix product over all timesteps. Written out, the products of all timesteps are nodes of one
graph, which the backend spreads over the cores by itself.
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


def affine(inputs: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
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

    def dropped(state: Tensor, dropout: Tensor | None) -> Tensor:
        return state if dropout is None else state * dropout

    def forward(
        project: Callable, inputs: Tensors, recurrent_kernel: Tensor, initial_state: Tensor
    ) -> Tensors:
        """Last state and all states; `project` makes of one timestep's `inputs` their share of the step."""

        def step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            (previous,), (recurrent_kernel, keep, drop, *inputs) = carry, x
            state = activation(project(*inputs) + ops.matmul(dropped(previous, drop), recurrent_kernel))
            state = state if keep is None else ops.where(keep, state, previous)
            return [state], [state]

        xs = [recurrent_kernel, mask, dropout, *inputs]
        (last,), (states,) = scan(step, [initial_state], xs, unroll=unroll)
        return [last, states]

    def backward(
        states: Tensor, recurrent_kernel: Tensor, initial_state: Tensor, upstream: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of everything from `delta_t = dL/da_t`, the only thing found step by step."""
        slope = _SLOPES[activation]

        def step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            (gradient,), (state, kernel, keep, drop, arriving) = carry, x
            gradient = gradient if arriving is None else gradient + arriving
            delta = gradient * slope(state)
            delta = delta if keep is None else ops.where(keep, delta, 0)
            earlier = dropped(ops.matmul(delta, ops.transpose(kernel)), drop)
            earlier = earlier if keep is None else ops.where(keep, earlier, gradient)
            return [earlier], [delta]

        last, arriving = (ops.zeros_like(initial_state), upstream) if return_sequences else (upstream, None)
        (d_initial_state,), (deltas,) = scan(
            step, [last], [states, recurrent_kernel, mask, dropout, arriving], reverse=True, unroll=unroll
        )
        previous = ops.concatenate([initial_state[None], states[:-1]])
        d_recurrent_kernel = ops.matmul(ops.transpose(dropped(previous, dropout), (0, 2, 1)), deltas)
        return deltas, d_recurrent_kernel, d_initial_state

    @ops.custom_gradient
    def with_batched_gradient(
        projections: Tensor, recurrent_kernel: Tensor, initial_state: Tensor
    ) -> tuple[Tensor, Callable]:
        last, states = forward(_as_it_is, [projections], recurrent_kernel, initial_state)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return backward(states, recurrent_kernel, initial_state, upstream)

        return (states if return_sequences else last), gradient

    # On torch always: what a custom gradient captures there is cut off from the graph, so second-order
    # gradients would be wrong without a word.
    if unroll is True or keras.backend.backend() == "torch":
        last, states = forward(affine, [inputs, kernel, bias], recurrent_kernel, initial_state)
    else:
        projections = affine(inputs, kernel, bias)
        if activation in _SLOPES:
            return with_batched_gradient(projections, recurrent_kernel, initial_state)
        last, states = forward(_as_it_is, [projections], recurrent_kernel, initial_state)
    return states if return_sequences else last


def _as_it_is(projection: Tensor) -> Tensor:
    return projection


def hold(outputs: Tensor, mask: Tensor, unroll: bool | int = False) -> Tensor:
    """Repeats the last unmasked output at masked timesteps; zeros before the first one.

    Args:
        outputs: `(timesteps, batch, features)`.
        mask: Boolean, `(timesteps, batch, 1)`.
        unroll: See `untied_rnn.scan.scan`.
    """

    def step(carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        output = ops.where(x[1], x[0], carry[0])
        return [output], [output]

    return scan(step, [ops.zeros_like(outputs[0])], [outputs, mask], unroll=unroll)[1][0]
