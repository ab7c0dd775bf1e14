"""Untied recurrences as pure functions on tensors, all of them time-major: `(timesteps, batch, ...)`.

Each timestep computes all that is its own, input projection and weight gradients included, while its weights
and its state are in the cache. One batched product over all timesteps for each of them would write stacks of
`(timesteps, batch, units)` to memory and read them again: measured on 2 cores at 784 timesteps of 128 units,
TensorFlow takes 1.1 to 1.3 times as long for that, and half as much memory again.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import keras
from keras import ops

from untied_rnn.custom_gradient import custom_gradient
from untied_rnn.scan import Index, Stack, scan

Tensor = Any
Tensors = list[Any]
Activation = Callable[[Tensor], Tensor]


class Gates:
    """What a layer does at one timestep with its two projections, element by element.

    Those are `p = x_t W_t + b_t` and `q = h_{t-1} U_t + c_t`, `(batch, parts * units)`; `h` is the first of
    the states.
    """

    parts: ClassVar[int]
    only_sum: ClassVar[bool]  # whether `p` and `q` count only as `p + q`
    saved: ClassVar[int] = 0
    has_backward: bool

    def project_state(self, p: Tensor, h: Tensor, kernel: Tensor, drop: Tensor | None) -> Tensor:
        """`h U`."""
        return project(h, kernel, drop)

    def forward(self, p: Tensor, q: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        """The states after the timestep, and `saved` tensors of their shape that `backward` needs."""
        raise NotImplementedError

    def backward(
        self, d_after: Tensors, saved: Tensors, before: Tensors, after: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """`dL/dp`, `dL/dq`, and `dL/dbefore` as far as it does not come through `q` (0 if not at all)."""
        raise NotImplementedError


def affine_recurrence(
    gates: Gates,
    inputs: Tensor,
    states: Tensors,
    weights: dict[str, Tensor],
    index: Index | None = None,
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
        weights: Stacks of weight sets, of any floating dtype: `kernel`, W,
            `(sets, input_dim, parts * units)`; `recurrent_kernel`, U, `(sets, units, parts * units)`;
            perhaps `bias`: b, `(sets, parts * units)`, or b and c, `(sets, 2, parts * units)`.
        index: See `untied_rnn.scan.Stack`.
        mask: Boolean, `(timesteps, batch, 1)`.
        input_dropout, state_dropout: Dropout masks of `x` and `h`, the same at all timesteps:
            `(parts, batch, ...)`, one for each part of the projection, or `(1, batch, ...)` for all.
        return_sequences: Whether to return `h` of all timesteps or the last one.
        unroll: See `untied_rnn.scan.scan`.

    Returns:
        `h`, `(timesteps, batch, units)` with `return_sequences` and else `(1, batch, units)`, and the last
        states.
    """
    stacks = [weights["kernel"], weights["recurrent_kernel"]]
    bias = weights.get("bias")
    if bias is not None:  # taken apart here, and not at every step
        stacks += [bias] if len(bias.shape) == 2 else [bias[:, 0], bias[:, 1]]
    # Along time as well, so that they reach the steps as all else does and are not captured by them.
    fixed = [mask, along_time(input_dropout, inputs), along_time(state_dropout, inputs)]
    number = len(states)
    # Not on torch: what a custom gradient captures there is cut off from the graph, so second-order
    # gradients would be silently wrong.
    lean = unroll is not True and gates.has_backward and keras.backend.backend() != "torch"
    # One product takes less time than two, if in a loop, where XLA copies each weight before its product:
    # measured on 2 cores, 0.93 of a training step of 28 timesteps of an LSTM of 128 units.
    joint = lean and gates.only_sum and input_dropout is None and state_dropout is None

    def recording_step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
        (keep, drop_input, drop_state, x), (kernel, recurrent_kernel, *biases) = x, _cast(w, before[0])
        if joint:
            both = ops.concatenate([x, before[0]], axis=-1)
            p = ops.matmul(both, ops.concatenate([kernel, recurrent_kernel]))
        else:
            p = project(x, kernel, drop_input)
        p = p + biases[0] if biases else p
        q = 0 if joint else gates.project_state(p, before[0], recurrent_kernel, drop_state)
        q = q + biases[1] if biases[1:] else q
        after, saved = gates.forward(p, q, before)
        if keep is not None:
            after = [ops.where(keep, new, old) for new, old in zip(after, before, strict=True)]
        return after, [*before, *saved, *(after[:1] if return_sequences else [])]

    def step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
        after, _ = recording_step(before, x, w)
        return after, after[:1] if return_sequences else []

    def backward_step(carry: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
        """All gradients of one timestep; the states that it ended in come from the one after."""
        d_after, after = carry[:number], carry[number:]
        keep, drop_input, drop_state, x, arriving, *x_rest = x
        kernel, recurrent_kernel = _cast(w[:2], d_after[0])
        before, saved = x_rest[:number], x_rest[number:]
        if arriving is not None:
            d_after = [d_after[0] + arriving, *d_after[1:]]
        d_p, d_q, d_before = gates.backward(d_after, saved, before, after)
        if keep is not None:
            d_p, d_q = ops.where(keep, d_p, 0), ops.where(keep, d_q, 0)
        d_x, d_kernel = _project_backward(d_p, x, kernel, drop_input)
        d_h, d_recurrent_kernel = _project_backward(d_q, before[0], recurrent_kernel, drop_state)
        d_before = [d_before[0] + d_h, *d_before[1:]]
        if keep is not None:
            d_before = [ops.where(keep, new, old) for new, old in zip(d_before, d_after, strict=True)]
        d_biases = [ops.sum(d, axis=0) for d, _ in zip((d_p, d_q), w[2:], strict=False)]
        return [*d_before, *before], [d_x, d_kernel, d_recurrent_kernel, *d_biases]

    def scanned(step: Callable, states: Tensors, inputs: Tensor, stacks: Tensors, ys: int) -> tuple:
        xs, y_shapes = [*fixed, inputs], [states[0].shape] * ys
        weights = [Stack(stack, index) for stack in stacks]
        return scan(step, states, xs, weights, unroll=unroll, y_shapes=y_shapes)

    @custom_gradient
    def with_lean_gradient(*tensors: Tensor) -> tuple[Tensors, Callable]:
        """Keeps what the gradient cannot do without; no product is computed twice."""
        states, inputs, stacks = list(tensors[:number]), tensors[number], list(tensors[number + 1 :])
        kept = number + gates.saved
        last, recorded = scanned(recording_step, states, inputs, stacks, kept + return_sequences)

        def gradient(*upstream: Any) -> tuple[Tensor, ...]:
            upstream = keras.tree.flatten(upstream)  # one list on JAX
            arriving = upstream[number] if return_sequences else None
            d_states, d_rest = scan(
                backward_step,
                [*upstream[:number], *last],
                [*fixed, inputs, arriving, *recorded[:kept]],
                [Stack(stack, index) for stack in stacks],
                reverse=True,
                unroll=unroll,
                y_shapes=[inputs.shape[1:]],
                sums=len(stacks),
            )
            return *d_states[:number], *d_rest

        return [*last, *recorded[kept:]], gradient

    if lean:
        results = with_lean_gradient(*states, inputs, *stacks)
        last, ys = list(results[:number]), results[number:]
    else:
        last, ys = scanned(step, states, inputs, stacks, int(return_sequences))
    return ys[0] if return_sequences else last[0][None], last


def _cast(weights: Tensors, like: Tensor) -> Tensors:
    """The weights in the dtype that the layer computes in."""
    return [ops.cast(weight, like.dtype) for weight in weights]


def in_rank_of(tensor: Tensor, mask: Tensor) -> Tensor:
    """A mask `(..., 1)` with as many axes as `tensor`."""
    while len(mask.shape) < len(tensor.shape):
        mask = ops.expand_dims(mask, -1)
    return mask


def along_time(mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """A dropout mask, repeated for every timestep of `inputs`."""
    return None if mask is None else ops.broadcast_to(mask, (ops.shape(inputs)[0], *ops.shape(mask)))


def project(x: Tensor, kernel: Tensor, drop: Tensor | None) -> Tensor:
    """`x W`, or `(x * d) W` for each part of `W` and its dropout mask `d`."""
    if drop is None:
        return ops.matmul(x, kernel)
    kernels = ops.split(kernel, drop.shape[0], axis=-1)
    parts = [ops.matmul(x * d, k) for d, k in zip(ops.unstack(drop), kernels, strict=True)]
    return ops.concatenate(parts, axis=-1)


def _project_backward(
    d_product: Tensor, x: Tensor, kernel: Tensor, drop: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradients of `project` to `x` and `W`."""
    if drop is None:
        return ops.matmul(d_product, ops.transpose(kernel)), ops.matmul(ops.transpose(x), d_product)
    n = drop.shape[0]
    parts = zip(
        ops.split(d_product, n, axis=-1), ops.split(kernel, n, axis=-1), ops.unstack(drop), strict=True
    )
    d_x, d_kernel = zip(
        *((ops.matmul(d, ops.transpose(k)) * m, ops.matmul(ops.transpose(x * m), d)) for d, k, m in parts),
        strict=True,
    )
    return sum(d_x), ops.concatenate(d_kernel, axis=-1)


def hold(outputs: Tensor, mask: Tensor, unroll: bool | int = False) -> Tensor:
    """Repeats the last unmasked output at masked timesteps; zeros before the first one.

    Args:
        outputs: `(timesteps, batch, ...)`.
        mask: Boolean, `(timesteps, batch, 1)`.
        unroll: See `untied_rnn.scan.scan`.
    """

    def step(carry: Tensors, x: Tensors, _: Tensors) -> tuple[Tensors, Tensors]:
        (held,), (output, keep) = carry, x
        output = ops.where(in_rank_of(output, keep), output, held)
        return [output], [output]

    return scan(step, [ops.zeros_like(outputs[0])], [outputs, mask], unroll=unroll)[1][0]
