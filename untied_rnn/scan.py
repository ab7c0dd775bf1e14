"""The loop over time, on every backend.

`scan` has the contract of `jax.lax.scan` for lists of tensors. It is not `keras.ops.scan` throughout
because that one, on TensorFlow, cannot be differentiated twice under XLA and has no unrolling, and on
torch indexes the stack at every step (a dense gradient per step, O(T^2) in all).
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensors = list[Any]
Shape = tuple[int | None, ...]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    reverse: bool = False,
    unroll: bool | int = False,
    y_shapes: list[Shape] | None = None,
) -> tuple[Tensors, Tensors]:
    """Runs `step(carry, x_t) -> (carry, y_t)` along the first axis of every tensor in `xs`.

    Args:
        step: Pure function of lists of tensors, which gets them all as arguments and captures none.
            All `y_t` have the dtype of the carry.
        carry: Tensors that one step hands to the next.
        xs: Tensors of shape `(timesteps, ...)`. An entry may be `None`; `step` then sees `None`.
        reverse: Whether to run from the last timestep to the first (`ys` keeps the order of `xs`).
        unroll: `True` writes all steps out, without a loop; an integer is the number of steps that
            one iteration of the loop runs.
        y_shapes: Shapes of `y_t`, which TensorFlow's loop must know before it runs. Those of `carry`
            if not given.

    Returns:
        The last carry, and the list of `y_i`, each of shape `(timesteps, ...)`.
    """
    present = [x is not None for x in xs]

    def full_step(carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        remaining = iter(xs)
        return step(carry, [next(remaining) if is_present else None for is_present in present])

    xs = [x for x in xs if x is not None]
    backend = keras.backend.backend()
    if backend == "jax":  # unrolled here as well: the gradient of a slice of `xs` would be a dense stack
        steps_per_iteration = xs[0].shape[0] if unroll is True else max(int(unroll), 1)
        return ops.scan(full_step, carry, xs, reverse=reverse, unroll=steps_per_iteration)
    if unroll is True or backend == "torch":  # torch has no loop of its own to compile into
        return _unrolled(full_step, carry, xs, reverse)
    import tensorflow as tf

    from untied_rnn.tensorflow_loop import while_scan

    y_specs = [tf.TensorSpec(shape, carry[0].dtype) for shape in y_shapes or [c.shape for c in carry]]
    return while_scan(full_step, carry, xs, y_specs, reverse, max(int(unroll), 1))


def _unrolled(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    timesteps = xs[0].shape[0]
    # Unstacked once, so that the gradient of the stack is one stacking of T slices.
    slices = [ops.unstack(x, timesteps) for x in xs]
    ys = []
    for t in reversed(range(timesteps)) if reverse else range(timesteps):
        carry, y = step(carry, [x[t] for x in slices])
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, [ops.stack(y) for y in zip(*ys, strict=True)]
