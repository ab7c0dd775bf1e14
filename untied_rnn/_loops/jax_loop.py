"""`scan` on JAX: `jax.lax.scan`, and its gradient where timesteps share weights."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Tensors = list[Any]
Step = Callable[[Tensors, Any, Tensors], tuple[Tensors, Tensors]]
# A step that returns beside carry and `y_t` what is to be added to the set of each of the first stacks.
SummingStep = Callable[[Tensors, Any, Tensors], tuple[Tensors, Any, Tensors]]
Index = Callable[[Any], Any]


def lax_scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    indices: list[Index | None],
    sums: int,
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    """See `untied_rnn.scan.scan`.

    Args:
        step, carry, xs, sums, reverse, steps_per_iteration: See there; no entry of `xs` is `None`.
        weights, indices: The values of the weights, and for each its index.
    """
    # Separate weights are slices along time, as `xs` are.
    separate = [i for i, index in enumerate(indices) if index is None]
    shared = [(i, index) for i, index in enumerate(indices) if index is not None]
    order = [*separate, *(i for i, _ in shared)]
    slices = [*xs, *(weights[i] for i in separate)]
    stacks, picks = [weights[i] for i, _ in shared], [index for _, index in shared]
    loop: dict[str, Any] = {"reverse": reverse, "unroll": steps_per_iteration}

    def whole_step(carry: Tensors, slices: Tensors, picked: Tensors) -> tuple[Tensors, Tensors]:
        used = dict(zip(order, [*slices[len(xs) :], *picked], strict=True))
        return step(carry, slices[: len(xs)], [used[i] for i in range(len(weights))])

    def summing_step(carry: Tensors, slices: Tensors, picked: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        carry, y = whole_step(carry, slices, picked)
        ys, parts = y[: len(y) - sums], y[len(y) - sums :]
        parts = [part.astype(weights[i].dtype) for i, part in enumerate(parts)]
        ys += [parts[i] for i in separate if i < sums]
        return carry, ys, [parts[i] for i, _ in shared if i < sums]

    if shared and not sums:
        return _with_lean_gradient(whole_step, carry, slices, stacks, picks, loop)
    number = sum(i < sums for i, _ in shared)
    carry, ys, totals = _summed(summing_step, carry, slices, stacks, picks, number, loop)
    first = len(ys) - (sums - number)
    found = dict(zip([i for i in order if i < sums], [*ys[first:], *totals], strict=True))
    return carry, [*ys[:first], *(found[i] for i in range(sums))]


def _pick(stacks: Tensors, picks: list[Index], t: Any) -> Tensors:
    pairs = zip(stacks, picks, strict=True)
    return [jax.lax.dynamic_index_in_dim(stack, pick(t), keepdims=False) for stack, pick in pairs]


def _timesteps(xs: Any) -> jax.Array:
    return jnp.arange(jax.tree.leaves(xs)[0].shape[0])


def _summed(
    step: SummingStep, carry: Tensors, xs: Any, stacks: Tensors, picks: list[Index], number: int, loop: dict
) -> tuple[Tensors, Tensors, Tensors]:
    """With sums for the first `number` stacks, which the loop carries, so that each is added to in place."""

    def body(state: tuple, x: tuple) -> tuple[tuple, Any]:
        (carry, totals), (t, x) = state, x
        carry, y, parts = step(carry, x, _pick(stacks, picks, t))
        pairs = zip(totals, parts, strict=True)
        return (carry, [total.at[picks[i](t)].add(part) for i, (total, part) in enumerate(pairs)]), y

    totals = [jnp.zeros_like(stack) for stack in stacks[:number]]
    (carry, totals), ys = jax.lax.scan(body, (carry, totals), (_timesteps(xs), xs), **loop)
    return carry, ys, totals


def _with_lean_gradient(
    step: Step, carry: Tensors, xs: Tensors, stacks: Tensors, picks: list[Index], loop: dict
) -> tuple[Tensors, Tensors]:
    """With a gradient that computes each step again from its carry, and sums over the steps of a set.

    JAX's own would keep the weights of each timestep, a copy for every one.
    """
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in xs]

    def run(carry: Tensors, xs: Tensors, stacks: Tensors) -> tuple:
        def body(carry: Tensors, x: tuple) -> tuple[Tensors, tuple]:
            t, x = x
            after, y = step(carry, x, _pick(stacks, picks, t))
            return after, (y, carry)

        last, (ys, carries) = jax.lax.scan(body, carry, (_timesteps(xs), xs), **loop)
        return (last, ys), (carries, xs, stacks)

    def backward(residuals: tuple, upstream: tuple) -> tuple:
        carries, xs, stacks = residuals
        d_last, d_ys = upstream

        def backward_step(d_after: Tensors, x: Any, picked: Tensors) -> tuple[Tensors, Tensors, Tensors]:
            before, x, d_y = x
            floats = [value for value, is_smooth in zip(x, smooth, strict=True) if is_smooth]

            def again(before: Tensors, floats: Tensors, picked: Tensors) -> tuple[Tensors, Tensors]:
                given = iter(floats)
                full = [next(given) if is_smooth else v for v, is_smooth in zip(x, smooth, strict=True)]
                return step(before, full, picked)

            _, pull = jax.vjp(again, before, floats, picked)
            return pull((d_after, d_y))

        backwards = {**loop, "reverse": not loop["reverse"]}
        steps = (carries, xs, d_ys)
        d_first, found, totals = _summed(backward_step, d_last, steps, stacks, picks, len(stacks), backwards)
        given = iter(found)
        return d_first, [next(given) if is_smooth else None for is_smooth in smooth], totals

    differentiable = jax.custom_vjp(lambda *tensors: run(*tensors)[0])
    differentiable.defvjp(run, backward)
    return differentiable(carry, xs, stacks)
