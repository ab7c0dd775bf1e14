"""The loop over time: the only code that knows which backend is running.

`scan` has the contract of `jax.lax.scan` for lists of tensors. It is not `keras.ops.scan` throughout
because that one, on TensorFlow, carries its state in a `TensorArray` inside a loop without
`maximum_iterations` (XLA then refuses second-order gradients) and has no unrolling, and on torch
indexes the stack once per step (a dense gradient per step, O(T^2) in all).
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensors = list[Any]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def scan(
    step: Step, carry: Tensors, xs: Tensors, reverse: bool = False, unroll: bool | int = False
) -> tuple[Tensors, Tensors]:
    """Runs `step(carry, x_t) -> (carry, y_t)` along the first axis of every tensor in `xs`.

    Args:
        step: Pure function of lists of tensors. `y_t[i]` has the shape and dtype of `carry[i]`.
        carry: Tensors that one step hands to the next.
        xs: Tensors of shape `(timesteps, ...)`. An entry may be `None`; `step` then sees `None`.
        reverse: Whether to run from the last timestep to the first (`ys` keeps the order of `xs`).
        unroll: `True` writes all steps out, without a loop; an integer is the number of steps that
            one iteration of the loop runs.

    Returns:
        The last carry, and the list of `y_i`, each of shape `(timesteps, ...)`.
    """
    backend = keras.backend.backend()
    if unroll is True or backend == "torch":  # torch has no loop of its own to compile into
        return _unrolled(step, carry, xs, reverse)
    if backend == "tensorflow":
        return _while_loop(step, carry, xs, reverse, steps_per_iteration=max(unroll, 1))
    return ops.scan(step, carry, xs, reverse=reverse, unroll=max(unroll, 1))


def _unrolled(step: Step, carry: Tensors, xs: Tensors, reverse: bool) -> tuple[Tensors, Tensors]:
    timesteps = next(x.shape[0] for x in xs if x is not None)
    # Unstacked once, so that the gradient of the stack is one stacking of T slices.
    slices = [[None] * timesteps if x is None else ops.unstack(x, timesteps) for x in xs]
    ys = []
    for t in reversed(range(timesteps)) if reverse else range(timesteps):
        carry, y = step(carry, [x[t] for x in slices])
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, [ops.stack(y) for y in zip(*ys, strict=True)]


def _while_loop(
    step: Step, carry: Tensors, xs: Tensors, reverse: bool, steps_per_iteration: int
) -> tuple[Tensors, Tensors]:
    import tensorflow as tf

    first = next(x for x in xs if x is not None)
    timesteps = tf.shape(first)[0] if first.shape[0] is None else first.shape[0]
    # Reading a TensorArray has an O(1) gradient (a write); indexing `x[t]` has an O(T) one.
    inputs = [
        None if x is None else tf.TensorArray(x.dtype, timesteps, element_shape=x.shape[1:]).unstack(x)
        for x in xs
    ]
    shapes = [c.shape for c in carry]
    outputs = [tf.TensorArray(c.dtype, timesteps, element_shape=c.shape) for c in carry]

    def single(i, carry, outputs):
        t = timesteps - 1 - i if reverse else i
        carry, y = step(carry, [None if x is None else x.read(t) for x in inputs])
        for value, shape in zip(carry, shapes, strict=True):
            value.set_shape(shape)
        return i + 1, carry, [out.write(t, value) for out, value in zip(outputs, y, strict=True)]

    def several(*loop_vars):
        for _ in range(steps_per_iteration):
            loop_vars = single(*loop_vars)
        return loop_vars

    def loop(body, loop_vars, iterations, last):
        # Without a bound on the iterations XLA cannot size the stacks that a gradient needs.
        return tf.while_loop(
            lambda i, *_: i < last, body, loop_vars, maximum_iterations=iterations, parallel_iterations=1
        )

    rest = timesteps % steps_per_iteration
    whole = timesteps - rest
    loop_vars = (tf.constant(0), list(carry), outputs)
    loop_vars = loop(several, loop_vars, whole // steps_per_iteration, whole)
    if steps_per_iteration > 1:
        loop_vars = loop(single, loop_vars, rest, timesteps)
    _, carry, outputs = loop_vars
    return carry, [output.stack() for output in outputs]
