"""The loop over time, on every backend.

`scan` extends the contract of `jax.lax.scan` for lists of tensors by weights, of which several timesteps may
share one set. It is not `keras.ops.scan`, because that one, on TensorFlow, cannot be differentiated twice
under XLA and has no unrolling, and because the gradient of `stack[index]` within a loop is, taken for
itself, a whole stack for each timestep: O(timesteps^2).
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

Tensors = list[Any]
Shape = tuple[int | None, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
Index = Callable[[Any], Any]


def scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors | None = None,
    index: Index | None = None,
    reverse: bool = False,
    unroll: bool | int = False,
    y_shapes: list[Shape] | None = None,
    sums: int = 0,
) -> tuple[Tensors, Tensors]:
    """Runs `step(carry, x_t, w_s) -> (carry, y_t)`, `s` being the weight set of timestep `t`.

    Args:
        step: Pure function of lists of tensors, which gets them all as arguments and captures none.
            All `y_t` have the dtype of the carry.
        carry: Tensors that one step hands to the next.
        xs: Tensors of shape `(timesteps, ...)`. An entry may be `None`; `step` then sees `None`.
        weights: Tensors of shape `(sets, ...)`.
        index: The set that timestep `t` uses, for an integer `t` of Python or a tensor. `None` is `t`.
        reverse: Whether to run from the last timestep to the first (`ys` keeps the order of `xs`).
        unroll: `True` writes all steps out, without a loop; an integer is the number of steps that
            one iteration of the loop runs.
        y_shapes: Shapes of `y_t`, which TensorFlow's loop must know before it runs. Those of `carry`
            if not given.
        sums: How many of the last `y_t` belong to weight sets, as gradients of weights do: they are
            returned as `(sets, ...)`, each added up over the timesteps of its set.

    Returns:
        The last carry, and the list of `y_i`, each of shape `(timesteps, ...)`.
    """
    present = [x is not None for x in xs]

    def full_step(carry: Tensors, xs: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        remaining = iter(xs)
        return step(carry, [next(remaining) if is_present else None for is_present in present], weights)

    carry, xs, weights = list(carry), [x for x in xs if x is not None], list(weights or [])
    backend = keras.backend.backend()
    # Torch has no loop of its own to compile into.
    if backend == "torch" or (backend == "tensorflow" and unroll is True):
        return _written_out(full_step, carry, xs, weights, index, reverse)
    steps_per_iteration = xs[0].shape[0] if unroll is True else max(int(unroll), 1)
    arguments = (full_step, carry, xs, weights, index)
    if backend == "jax":  # written out here as well: the gradient of a slice would be a dense stack
        from untied_rnn.jax_loop import lax_scan

        return lax_scan(*arguments, (y_shapes or [])[-sums:], sums, reverse, steps_per_iteration)
    import tensorflow as tf

    from untied_rnn.tensorflow_loop import while_scan

    y_shapes = [c.shape for c in carry] if y_shapes is None else y_shapes
    y_specs = [tf.TensorSpec(shape, carry[0].dtype) for shape in y_shapes]
    return while_scan(*arguments, y_specs, sums, reverse, steps_per_iteration)


def _written_out(
    step: Step, carry: Tensors, xs: Tensors, weights: Tensors, index: Index | None, reverse: bool
) -> tuple[Tensors, Tensors]:
    timesteps = xs[0].shape[0]
    # Unstacked once, so that the gradient of the stack is one stacking of T slices.
    slices = [ops.unstack(x, timesteps) for x in xs]
    sets = [ops.unstack(w, w.shape[0]) for w in weights]
    ys = []
    for t in reversed(range(timesteps)) if reverse else range(timesteps):
        s = t if index is None else int(index(t))
        carry, y = step(carry, [x[t] for x in slices], [w[s] for w in sets])
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, [ops.stack(y) for y in zip(*ys, strict=True)]
