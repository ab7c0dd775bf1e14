"""Draws the weights of all timesteps, in one pass for Keras's own initializers.

Drawn one after the other, 3,136 weight sets of 128 units took 8 s, nearly all of it in Python.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import initializers, ops

from untied_rnn._types import Initializer, Tensor

Shape = tuple[int, ...]


class StackInitializer(initializers.Initializer):
    """An initializer that draws the weights of many sets itself."""

    def draw(self, sets: np.ndarray, total: int, shape: Shape, dtype: str | None) -> Tensor:
        """The weights of the given sets, stacked; see `draw`."""
        raise NotImplementedError  # each subclass has its own


def draw(
    initializer: Initializer, sets: np.ndarray, total: int, shape: Shape, dtype: str | None = None
) -> Tensor:
    """Draws a separate weight for each set, and stacks them.

    Args:
        initializer: Callable `(shape, dtype)` for one weight, or a `StackInitializer`.
        sets: Numbers of the weight sets that are drawn, in ascending order.
        total: Number of all weight sets, on which the values of each may depend.
        shape: Shape of one weight.
        dtype: Type of the weights.
    """
    if isinstance(initializer, StackInitializer):
        return initializer.draw(sets, total, shape, dtype)
    draw_stack = _draw_stack(initializer)
    if draw_stack is None:
        return ops.stack([initializer_at(initializer, int(s))(shape, dtype=dtype) for s in sets])
    stack = draw_stack(initializer_at(initializer, 0), total, shape, dtype)
    # All are drawn: the values of a set must not depend on which others are wanted.
    return stack if len(sets) == total else ops.take(stack, sets, axis=0)


class UnitForgetBias(StackInitializer):
    """An initializer, but ones for the forget gate, so that a cell remembers from the start."""

    def __init__(self, initializer: Initializer):
        self.initializer = initializer

    def draw(self, sets: np.ndarray, total: int, shape: Shape, dtype: str | None) -> Tensor:
        i, f, g, o = ops.split(draw(self.initializer, sets, total, shape, dtype), 4, axis=-1)
        return ops.concatenate([i, ops.ones_like(f), g, o], axis=-1)


def is_drawn_in_one_pass(initializer: Any) -> bool:
    """Whether `draw` calls none of the user's own code."""
    return isinstance(initializer, StackInitializer) or _draw_stack(initializer) is not None


def is_elementwise(initializer: Any) -> bool:
    """Whether all elements of a weight have the same distribution, whatever its shape is."""
    return _draw_stack(initializer) is _elementwise


def initializer_at(initializer: Initializer, weight_set: int) -> Initializer:
    """The initializer of one weight set.

    Keras initializers with an integer seed return the same values at every call; here each set gets its own
    seed, derived from that one, so that the weights differ but are reproducible.
    """
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int):  # not random, or a `SeedGenerator` that moves on by itself
        return initializer
    # Hashed, not counted up: else layers with seeds 0 and 1 would share all but one weight.
    seeds = np.random.SeedSequence(seed % 2**64).generate_state(weight_set + 1)
    keras_initializer: Any = initializer
    config = {**keras_initializer.get_config(), "seed": int(seeds[weight_set])}
    return keras_initializer.from_config(config)


# Keras's own initializers, for `total` weights at once.


def _elementwise(initializer: Any, total: int, shape: Shape, dtype: str | None) -> Tensor:
    return initializer((total, *shape), dtype=dtype)


def _repeated(initializer: Any, total: int, shape: Shape, dtype: str | None) -> Tensor:
    return ops.repeat(ops.expand_dims(initializer(shape, dtype=dtype), 0), total, axis=0)


def _variance_scaling(initializer: Any, total: int, shape: Shape, dtype: str | None) -> Tensor:
    # Keras multiplies both fans of a matrix by the axes before it, and takes the length of a vector for both
    # fans: all weights together have fans `total` times as large as one weight's.
    together = initializers.VarianceScaling(
        initializer.scale * total, initializer.mode, initializer.distribution, initializer.seed
    )
    joined = (total, *shape) if len(shape) > 1 else (total * math.prod(shape),)
    return ops.reshape(together(joined, dtype=dtype), (total, *shape))


def _orthogonal(initializer: Any, total: int, shape: Shape, dtype: str | None) -> Tensor:
    if len(shape) < 2:
        return initializer(shape, dtype=dtype)  # which refuses it
    rows, columns = math.prod(shape[:-1]), shape[-1]
    tall = (total, max(rows, columns), min(rows, columns))
    q, r = ops.qr(keras.random.normal(tall, dtype=dtype, seed=initializer.seed))
    # Without the signs of `r`, `q` would not be uniform: its first entry would never be positive.
    signs = ops.sign(ops.diagonal(r, axis1=-2, axis2=-1))
    q = q * (initializer.gain * ops.expand_dims(signs, -2))
    return ops.reshape(ops.transpose(q, (0, 2, 1)) if rows < columns else q, (total, *shape))


# By what is called, which a subclass may replace.
_DRAW_STACK: dict[Any, Callable[[Any, int, Shape, str | None], Tensor]] = {
    initializers.RandomNormal.__call__: _elementwise,
    initializers.RandomUniform.__call__: _elementwise,
    initializers.TruncatedNormal.__call__: _elementwise,
    initializers.Constant.__call__: _elementwise,
    initializers.Zeros.__call__: _elementwise,
    initializers.Ones.__call__: _elementwise,
    initializers.Identity.__call__: _repeated,
    initializers.VarianceScaling.__call__: _variance_scaling,
    initializers.Orthogonal.__call__: _orthogonal,
}


def _draw_stack(initializer: Any) -> Callable[[Any, int, Shape, str | None], Tensor] | None:
    """The function that draws all weights of an initializer at once, or `None`."""
    if getattr(initializer, "input_axes", None) is not None:  # axes of one weight, not of the stack
        return None
    return _DRAW_STACK.get(type(initializer).__call__)
