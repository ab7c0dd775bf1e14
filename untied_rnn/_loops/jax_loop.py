"""`scan` on JAX: `jax.lax.scan`, and its gradient where timesteps share weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from untied_rnn._loops.loop import ListStep, Loop
from untied_rnn._types import Nested, Tensors


def lax_scan(
    step: ListStep, carry: Tensors, xs: Tensors, weights: Tensors, loop: Loop
) -> tuple[Tensors, Tensors, Tensors]:
    """See `scan`.

    Args:
        step: Pure function that captures no tensors.
        carry, xs, weights: Lists of tensors.
        loop: The order of the timesteps, and the weights that they use.
    """
    if loop.sums or all(index is None for index in loop.indices):
        return _loop(step, carry, xs, weights, loop)
    return _with_lean_gradient(step, carry, xs, weights, loop)


def _loop(
    step: Callable[..., tuple], carry: Tensors, xs: Nested, weights: Tensors, loop: Loop
) -> tuple[Tensors, Any, Tensors]:
    """The loop carries the sums of shared sets, so that each is added to in place.

    Separate weights and their gradients are slices along time, as `xs` and `ys` are.
    """
    indices, sums = loop.indices, range(loop.sums)
    slices = [weight if index is None else None for weight, index in zip(weights, indices, strict=True)]
    totals = [None if indices[i] is None else jnp.zeros_like(weights[i]) for i in sums]

    def body(state: tuple, x: tuple) -> tuple[tuple, tuple]:
        (carry, totals), (t, x, slices) = state, x
        used = [
            slice_ if index is None else _at(weight, index(t))
            for slice_, weight, index in zip(slices, weights, indices, strict=True)
        ]
        carry, y, parts = step(carry, x, used)
        parts = [parts[i].astype(weights[i].dtype) for i in sums]
        added = [
            total.at[index(t)].add(part) if index else None
            for total, part, index in zip(totals, parts, indices, strict=False)
        ]
        return (carry, added), (y, [parts[i] if indices[i] is None else None for i in sums])

    steps = (jnp.arange(jax.tree.leaves(xs)[0].shape[0]), xs, slices)
    (carry, totals), (ys, parts) = jax.lax.scan(
        body, (carry, totals), steps, reverse=loop.reverse, unroll=loop.steps_per_iteration
    )
    return carry, ys, [part if total is None else total for part, total in zip(parts, totals, strict=True)]


def _at(stack: Any, place: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, place, keepdims=False)


def _with_lean_gradient(
    step: ListStep, carry: Tensors, xs: Tensors, weights: Tensors, loop: Loop
) -> tuple[Tensors, Tensors, Tensors]:
    """With a gradient that computes each step again from its carry, and sums over the steps of a set.

    JAX's own would keep the weights of each timestep, a copy for every one.
    """
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in xs]

    def recording_step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Any, Tensors]:
        after, y, _ = step(before, x, w)
        return after, (y, before), []

    def forward(carry: Tensors, xs: Tensors, weights: Tensors) -> tuple:
        last, (ys, carries), _ = _loop(recording_step, carry, xs, weights, loop)
        return (last, ys), (carries, xs, weights)

    def backward_step(d_after: Tensors, x: Any, w: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        before, x, d_y = x
        floats = [value for value, is_smooth in zip(x, smooth, strict=True) if is_smooth]

        def again(before: Tensors, floats: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
            given = iter(floats)
            full = [next(given) if is_smooth else v for v, is_smooth in zip(x, smooth, strict=True)]
            after, y, _ = step(before, full, w)
            return after, y

        _, pull = jax.vjp(again, before, floats, w)
        return pull((d_after, d_y))

    def backward(residuals: tuple, upstream: tuple) -> tuple:
        carries, xs, weights = residuals
        d_last, d_ys = upstream
        backwards = dataclasses.replace(loop, sums=len(weights), reverse=not loop.reverse)
        d_first, found, totals = _loop(backward_step, d_last, (carries, xs, d_ys), weights, backwards)
        given = iter(found)
        return d_first, [next(given) if is_smooth else None for is_smooth in smooth], totals

    differentiable = jax.custom_vjp(lambda *operands: forward(*operands)[0])
    differentiable.defvjp(forward, backward)
    return *differentiable(carry, xs, weights), []
