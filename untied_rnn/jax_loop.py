"""`scan` on JAX: `jax.lax.scan`, and its gradient where timesteps share weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tensors = list[Any]
Step = Callable[[Tensors, Any, Tensors], tuple[Tensors, Tensors]]


def lax_scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    index: Callable[[Any], Any] | None,
    sum_shapes: list[tuple],
    sums: int,
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    """See `untied_rnn.scan.scan`; no entry of `xs` is `None`. `sum_shapes` are the shapes of the sums."""
    loop: dict[str, Any] = {"reverse": reverse, "unroll": steps_per_iteration}
    if index is None or not weights:
        return jax.lax.scan(lambda carry, x: step(carry, *x), carry, (xs, weights), **loop)
    if sums:
        return _summed(step, carry, xs, weights, index, sum_shapes, loop)
    return _shared(step, carry, xs, weights, index, loop)


def _pick(stacks: Tensors, s: Any) -> Tensors:
    return [jax.lax.dynamic_index_in_dim(stack, s, keepdims=False) for stack in stacks]


def _steps(xs: Any) -> jax.Array:
    return jnp.arange(jax.tree.leaves(xs)[0].shape[0])


def _summed(
    step: Step, carry: Tensors, xs: Any, weights: Tensors, index: Callable, shapes: list, loop: dict
) -> tuple[Tensors, Tensors]:
    """With sums that the loop carries, so that each step adds to one set in place."""
    sets = weights[0].shape[0]
    totals = [jnp.zeros((sets, *shape), carry[0].dtype) for shape in shapes]

    def body(state: tuple, x: tuple) -> tuple[tuple, Any]:
        (carry, totals), (t, x) = state, x
        s = index(t)
        carry, y = step(carry, x, _pick(weights, s))
        y, parts = y[: -len(totals)], y[-len(totals) :]
        return (carry, [total.at[s].add(part) for total, part in zip(totals, parts, strict=True)]), y

    (carry, totals), ys = jax.lax.scan(body, (carry, totals), (_steps(xs), xs), **loop)
    return carry, [*ys, *totals]


def _shared(
    step: Step, carry: Tensors, xs: Tensors, weights: Tensors, index: Callable, loop: dict
) -> tuple[Tensors, Tensors]:
    """With a gradient that computes each step again from its carry, and sums over the steps of a set.

    JAX's own would keep the weights of each timestep, a copy for every one.
    """
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in xs]

    def run(carry: Tensors, xs: Tensors, weights: Tensors) -> tuple:
        def body(carry: Tensors, x: tuple) -> tuple[Tensors, tuple]:
            t, x = x
            after, y = step(carry, x, _pick(weights, index(t)))
            return after, (y, carry)

        last, (ys, carries) = jax.lax.scan(body, carry, (_steps(xs), xs), **loop)
        return (last, ys), (carries, xs, weights)

    def backward(residuals: tuple, upstream: tuple) -> tuple:
        carries, xs, weights = residuals
        d_last, d_ys = upstream

        def backward_step(d_after: Tensors, x: tuple, weights: Tensors) -> tuple[Tensors, Tensors]:
            before, x, d_y = x
            floats = [value for value, is_smooth in zip(x, smooth, strict=True) if is_smooth]

            def again(before: Tensors, floats: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
                given = iter(floats)
                full = [next(given) if is_smooth else v for v, is_smooth in zip(x, smooth, strict=True)]
                return step(before, full, weights)

            _, pull = jax.vjp(again, before, floats, weights)
            d_before, d_floats, d_weights = pull((d_after, d_y))
            return d_before, [*d_floats, *d_weights]

        shapes = [w.shape[1:] for w in weights]
        backwards = {**loop, "reverse": not loop["reverse"]}
        steps = (carries, xs, d_ys)
        d_first, found = _summed(backward_step, d_last, steps, weights, index, shapes, backwards)
        given = iter(found)
        d_xs = [next(given) if is_smooth else None for is_smooth in smooth]
        return d_first, d_xs, list(given)

    differentiable = jax.custom_vjp(lambda *tensors: run(*tensors)[0])
    differentiable.defvjp(run, backward)
    return differentiable(carry, xs, weights)
