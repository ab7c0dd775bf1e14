"""Untied recurrences as pure functions on tensors, all of them time-major: `(timesteps, batch, ...)`.

Each timestep computes all that is its own, input projection and weight gradients included, while its weights
and its state are in the cache. One batched product over all timesteps for each of them would write stacks of
`(timesteps, batch, units)` to memory and read them again: measured on 2 cores at 784 timesteps of 128 units,
TensorFlow takes 1.1 to 1.3 times as long for that, and half as much memory again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import keras
from keras import ops

from untied_rnn._loops.custom_gradient import custom_gradient
from untied_rnn._loops.gates import Gates, project, project_backward
from untied_rnn._loops.nested import flat, nested_as
from untied_rnn._loops.scan import Made, Stack, scan, stacks_of, with_values
from untied_rnn._types import Tensor, Tensors


class Weights(NamedTuple):
    """The weights of an affine recurrence: stacks of all timesteps, the tensors of one, or their gradients.

    Attributes:
        kernel, recurrent_kernel: W and U.
        bias, recurrent_bias: b and c, or `None`.
    """

    kernel: Any
    recurrent_kernel: Any
    bias: Any = None
    recurrent_bias: Any = None


class Inputs(NamedTuple):
    """What arrives at a timestep, beside the states; or at all of them.

    Attributes:
        x: `(batch, input_dim)`.
        mask: Boolean, `(batch, 1)`, or `None`: where it is `False` the states are kept.
        input_dropout, state_dropout: Dropout masks of `x` and `h`, or `None`: `(parts, batch, ...)`, one for
            each part of the projection, or `(1, batch, ...)` for all.
    """

    x: Tensor
    mask: Tensor | None
    input_dropout: Tensor | None
    state_dropout: Tensor | None


class Residuals(NamedTuple):
    """What the gradient of a timestep cannot do without: the states before it, and what its gates kept."""

    before: Tensors
    gates: Tensors


class BackwardCarry(NamedTuple):
    """What the gradient of a timestep gets from the one after: gradients of its last states, and those."""

    d_after: Tensors
    after: Tensors


class BackwardInputs(NamedTuple):
    """What else the gradient of a timestep gets; `d_h` is the gradient of its output, or `None`."""

    inputs: Inputs
    d_h: Tensor | None
    residuals: Residuals


def affine_recurrence(
    gates: Gates,
    inputs: Tensor,
    states: Tensors,
    weights: dict[str, Stack | Made],
    mask: Tensor | None = None,
    input_dropout: Tensor | None = None,
    state_dropout: Tensor | None = None,
    return_sequences: bool = True,
    unroll: bool | int = False,
) -> tuple[Tensor, Tensors]:
    """`states_t = gates(x_t W_s + b_s, h_{t-1} U_s + c_s, states_{t-1})`, unchanged where masked.

    Args:
        gates: The rest of a timestep.
        inputs: `x`, `(timesteps, batch, input_dim)`.
        states: Initial states, `(batch, units)`.
        weights: Of any floating dtype, at each timestep: `kernel`, W, `(input_dim, parts * units)`;
            `recurrent_kernel`, U, `(units, parts * units)`; perhaps `bias`: b, `(parts * units,)`, or b and
            c, `(2, parts * units)`.
        mask: Boolean, `(timesteps, batch, 1)`.
        input_dropout, state_dropout: See `Inputs`; the same at all timesteps.
        return_sequences: Whether to return `h` of all timesteps or the last one.
        unroll: See `scan`.

    Returns:
        `h`, `(timesteps, batch, units)` with `return_sequences` and else `(1, batch, units)`, and the last
        states.
    """
    biases = _biases(weights["bias"], gates) if "bias" in weights else []
    used = Weights(weights["kernel"], weights["recurrent_kernel"], *biases)
    # Dropout masks along time as well, so that they reach the steps as all else does and are not captured.
    xs = Inputs(inputs, mask, along_time(input_dropout, inputs), along_time(state_dropout, inputs))
    # Not on torch: what a custom gradient captures there is cut off from the graph, so second-order
    # gradients would be silently wrong.
    lean = unroll is not True and gates.has_backward and keras.backend.backend() != "torch"
    # One product takes less time than two, if in a loop, where XLA copies each weight before its product:
    # measured on 2 cores, 0.93 of a training step of 28 timesteps of an LSTM of 128 units.
    joint = lean and gates.only_sum and input_dropout is None and state_dropout is None
    timestep = _Timestep(gates, joint, return_sequences)
    if lean:
        last, h = _with_lean_gradient(timestep, list(states), xs, used, unroll)
    else:
        shapes = [states[0].shape] * return_sequences
        last, h = scan(timestep.forward, list(states), xs, used, unroll=unroll, y_shapes=shapes)
    return h if return_sequences else last[0][None], last


def _biases(weight: Stack | Made, gates: Gates) -> list[Stack | Made]:
    """b, or b and c.

    They are taken apart once, and not at every step: that took 1.3 of a training step of a GRU under XLA.
    """
    if gates.biases == 1:
        return [weight]
    if isinstance(weight, Stack):
        return [replace(weight, values=weight.values[:, i]) for i in range(gates.biases)]
    return [replace(weight, make=partial(_row, i, weight.make)) for i in range(gates.biases)]


def _row(i: int, make: Callable[..., Tensor], *parts: Tensor) -> Tensor:
    return make(*parts)[i]


@dataclass(frozen=True)
class _Timestep:
    """One timestep, forward and backward.

    Args:
        gates: What is done with the projections.
        joint: Whether both projections are one product.
        return_sequences: Whether `h` is returned.
    """

    gates: Gates
    joint: bool
    return_sequences: bool

    def forward(self, before: Tensors, inputs: Inputs, w: Weights) -> tuple[Tensors, Tensor | None]:
        after, h, _ = self._forward(before, inputs, w)
        return after, h

    def recorded(
        self, before: Tensors, inputs: Inputs, w: Weights
    ) -> tuple[Tensors, tuple[Residuals, Tensor | None]]:
        """`forward`, and what `backward` needs of it."""
        after, h, residuals = self._forward(before, inputs, w)
        return after, (residuals, h)

    def _forward(
        self, before: Tensors, inputs: Inputs, w: Weights
    ) -> tuple[Tensors, Tensor | None, Residuals]:
        x, h, w = inputs.x, before[0], _in_dtype_of(before[0], w)
        if self.joint:
            kernels = ops.concatenate([w.kernel, w.recurrent_kernel])
            p, q = _plus(ops.matmul(ops.concatenate([x, h], axis=-1), kernels), w.bias), 0
        else:
            p = _plus(project(x, w.kernel, inputs.input_dropout), w.bias)
            q = self.gates.project_state(p, h, w.recurrent_kernel, inputs.state_dropout)
            q = _plus(q, w.recurrent_bias)
        after, residuals = self.gates.forward(p, q, before)
        if inputs.mask is not None:
            after = [ops.where(inputs.mask, new, old) for new, old in zip(after, before, strict=True)]
        return after, after[0] if self.return_sequences else None, Residuals(before, residuals)

    def backward(
        self, carry: BackwardCarry, x: BackwardInputs, w: Weights
    ) -> tuple[BackwardCarry, Tensor, Weights]:
        """All gradients of one timestep: to the states before it, to its input and to its weights."""
        (d_after, after), (before, residuals), mask = carry, x.residuals, x.inputs.mask
        w = _in_dtype_of(d_after[0], w)
        if x.d_h is not None:
            d_after = [d_after[0] + x.d_h, *d_after[1:]]
        d_p, d_q, d_before = self.gates.backward(d_after, residuals, before, after)
        if mask is not None:
            d_p, d_q = ops.where(mask, d_p, 0), ops.where(mask, d_q, 0)
        d_x, d_kernel = project_backward(d_p, x.inputs.x, w.kernel, x.inputs.input_dropout)
        d_h, d_recurrent_kernel = project_backward(d_q, before[0], w.recurrent_kernel, x.inputs.state_dropout)
        d_before = [d_before[0] + d_h, *d_before[1:]]
        if mask is not None:
            d_before = [ops.where(mask, new, old) for new, old in zip(d_before, d_after, strict=True)]
        d_weights = Weights(
            d_kernel,
            d_recurrent_kernel,
            None if w.bias is None else ops.sum(d_p, axis=0),
            None if w.recurrent_bias is None else ops.sum(d_q, axis=0),
        )
        return BackwardCarry(d_before, before), d_x, d_weights


def _with_lean_gradient(
    timestep: _Timestep, states: Tensors, xs: Inputs, weights: Weights, unroll: bool | int
) -> tuple[Tensors, Tensor | None]:
    """The recurrence with a gradient that keeps little, and computes no product twice."""
    state_shapes = [state.shape for state in states]
    recorded = state_shapes + state_shapes[:1] * (timestep.gates.residuals + timestep.return_sequences)
    stacks = [stack.values for stack in stacks_of(weights)]

    @custom_gradient
    def run(*tensors: Tensor) -> tuple[Tensors, Callable]:
        # Flat, as TensorFlow's custom gradients must be.
        states_, x, values = nested_as((states, xs.x, stacks), tensors)
        given, inputs = with_values(weights, values), xs._replace(x=x)
        last, (residuals, h) = scan(
            timestep.recorded, states_, inputs, given, unroll=unroll, y_shapes=recorded
        )

        def gradient(*upstream: Any) -> tuple[Tensor, ...]:
            d_last, d_h = nested_as((last, h), keras.tree.flatten(upstream))  # which is one list on JAX
            first, d_x, d_stacks = scan(
                timestep.backward,
                BackwardCarry(d_last, last),
                BackwardInputs(inputs, d_h, residuals),
                given,
                reverse=True,
                unroll=unroll,
                y_shapes=[x.shape[1:]],
                sum_gradients=True,
            )
            return tuple(flat((first.d_after, d_x, d_stacks)))

        return flat((last, h)), gradient

    results = run(*flat((states, xs.x, stacks)))
    return nested_as((states, True if timestep.return_sequences else None), results)


def _plus(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias


def _in_dtype_of(tensor: Tensor, weights: Weights) -> Weights:
    """The weights in the dtype that the layer computes in."""
    return Weights(*(None if w is None else ops.cast(w, tensor.dtype) for w in weights))


def in_rank_of(tensor: Tensor, mask: Tensor) -> Tensor:
    """A mask `(..., 1)` with as many axes as `tensor`."""
    while len(mask.shape) < len(tensor.shape):
        mask = ops.expand_dims(mask, -1)
    return mask


def along_time(mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """A dropout mask, repeated for every timestep of `inputs`."""
    return None if mask is None else ops.broadcast_to(mask, (ops.shape(inputs)[0], *ops.shape(mask)))


def hold(outputs: Tensor, mask: Tensor, unroll: bool | int = False) -> Tensor:
    """Repeats the last unmasked output at masked timesteps; zeros before the first one.

    Args:
        outputs: `(timesteps, batch, ...)`.
        mask: Boolean, `(timesteps, batch, 1)`.
        unroll: See `scan`.
    """

    def step(held: Tensor, x: tuple[Tensor, Tensor], _: Any) -> tuple[Tensor, Tensor]:
        output, mask = x
        output = ops.where(in_rank_of(output, mask), output, held)
        return output, output

    return scan(step, ops.zeros_like(outputs[0]), (outputs, mask), unroll=unroll)[1]
