"""The loop over time, on every backend.

`scan` extends the contract of `jax.lax.scan` for lists of tensors by weights, of which several timesteps may
share one set. It is not `keras.ops.scan`, because that one, on TensorFlow, cannot be differentiated twice
under XLA and has no unrolling, and because the gradient of `stack[index]` within a loop is, taken for
itself, a whole stack for each timestep: O(timesteps^2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

Tensors = list[Any]
Shape = tuple[int | None, ...]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
Index = Callable[[Any], Any]


@dataclass(frozen=True)
class Stack:
    """Weights of which each timestep uses one.

    Attributes:
        values: `(sets, ...)`.
        index: The set that timestep `t` uses, for an integer `t` of Python or a tensor. `None` is `t`.
    """

    values: Any
    index: Index | None = None


def scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Sequence[Stack] = (),
    reverse: bool = False,
    unroll: bool | int = False,
    y_shapes: list[Shape] | None = None,
    sums: int = 0,
) -> tuple[Tensors, Tensors]:
    """Runs `step(carry, x_t, w_t) -> (carry, y_t)`, `w_t` being the weights that timestep `t` uses.

    Args:
        step: Pure function of lists of tensors, which gets them all as arguments and captures none.
            All `y_t` but the sums have the dtype of the carry.
        carry: Tensors that one step hands to the next.
        xs: Tensors of shape `(timesteps, ...)`. An entry may be `None`; `step` then sees `None`.
        weights: Weights, which may be of another dtype than the carry.
        reverse: Whether to run from the last timestep to the first (`ys` keeps the order of `xs`).
        unroll: `True` writes all steps out, without a loop; an integer is the number of steps that
            one iteration of the loop runs.
        y_shapes: Shapes of `y_t` without the sums, which TensorFlow's loop must know before it runs. Those
            of `carry` if not given.
        sums: How many of the last `y_t` are gradients of the first weights. Each is added up over the
            timesteps of its set, in the dtype of the weights: in 16 bits a sum of ones ends at 256.

    Returns:
        The last carry, and the list of `y_i`, each of shape `(timesteps, ...)`.
    """
    present = [x is not None for x in xs]

    def full_step(carry: Tensors, xs: Tensors, weights: Tensors) -> tuple[Tensors, Tensors]:
        remaining = iter(xs)
        return step(carry, [next(remaining) if is_present else None for is_present in present], weights)

    carry, xs = list(carry), [x for x in xs if x is not None]
    values, indices = [w.values for w in weights], [w.index for w in weights]
    backend = keras.backend.backend()
    # Torch has no loop of its own to compile into.
    if backend == "torch" or (backend == "tensorflow" and unroll is True):
        return _written_out(full_step, carry, xs, values, indices, reverse)
    steps_per_iteration = xs[0].shape[0] if unroll is True else max(int(unroll), 1)
    arguments = (full_step, carry, xs, values, indices)
    if backend == "jax":  # written out here as well: the gradient of a slice would be a dense stack
        from untied_rnn.jax_loop import lax_scan

        return lax_scan(*arguments, sums, reverse, steps_per_iteration)
    import tensorflow as tf

    from untied_rnn.tensorflow_loop import while_scan

    y_shapes = [c.shape for c in carry] if y_shapes is None else y_shapes
    y_specs = [tf.TensorSpec(shape, carry[0].dtype) for shape in y_shapes]
    return while_scan(*arguments, y_specs, sums, reverse, steps_per_iteration)


def _written_out(
    step: Step, carry: Tensors, xs: Tensors, weights: Tensors, indices: list[Index | None], reverse: bool
) -> tuple[Tensors, Tensors]:
    timesteps = xs[0].shape[0]
    # Unstacked once, so that the gradient of the stack is one stacking of T slices.
    slices = [ops.unstack(x, timesteps) for x in xs]
    sets = [ops.unstack(w, w.shape[0]) for w in weights]
    ys = []
    for t in reversed(range(timesteps)) if reverse else range(timesteps):
        places = [t if index is None else int(index(t)) for index in indices]
        used = [w[place] for w, place in zip(sets, places, strict=True)]
        carry, y = step(carry, [x[t] for x in slices], used)
        ys.append(y)
    if reverse:
        ys.reverse()
    return carry, [ops.stack(y) for y in zip(*ys, strict=True)]
