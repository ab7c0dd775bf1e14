"""How one stacked variable holds a separate weight for every timestep.

A weight of shape `(timesteps, ...)` is one variable, so that optimizer, summary and file see one; but
initializers, regularizers and constraints are meant for the matrix that one timestep uses. On the
stack they would take time for a receptive field (Glorot), flatten it (orthogonal), normalise over it
(`MaxNorm`) or refuse its rank.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

# Sums over elements, so that the penalty of the stack is already the sum over its weights.
_ELEMENTWISE = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


class TimestepInitializer(keras.initializers.Initializer):
    """Draws each timestep's weight by itself, from one initializer.

    Keras initializers with an integer seed return the same values at every call; here each timestep
    gets its own seed, derived from that one, so that the weights differ but are reproducible.

    Args:
        initializer: Callable `(shape, dtype)` for the weight of one timestep.
    """

    def __init__(self, initializer: Callable[..., Tensor]):
        self.initializer = initializer

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        timesteps, *weight_shape = shape
        return ops.stack([draw(tuple(weight_shape), dtype=dtype) for draw in self._per_timestep(timesteps)])

    def _per_timestep(self, timesteps: int) -> list[Callable[..., Tensor]]:
        seed = getattr(self.initializer, "seed", None)
        if not isinstance(seed, int):  # not random, or a `SeedGenerator` that moves on by itself
            return [self.initializer] * timesteps
        # Hashed, not counted up: else layers with seeds 0 and 1 would share all but one weight.
        seeds = np.random.SeedSequence(seed % 2**64).generate_state(timesteps)
        initializer: Any = self.initializer
        config = initializer.get_config()
        return [initializer.from_config({**config, "seed": int(s)}) for s in seeds]


class TimestepRegularizer(keras.regularizers.Regularizer):
    """Sums a regularizer's penalty over the weights of all timesteps.

    Args:
        regularizer: Callable that returns the penalty of one timestep's weight.
    """

    def __init__(self, regularizer: Callable[[Tensor], Tensor]):
        self.regularizer = regularizer

    def __call__(self, stack: Tensor) -> Tensor:
        if type(self.regularizer) in _ELEMENTWISE:
            return self.regularizer(stack)
        return ops.sum(ops.vectorized_map(self.regularizer, ops.convert_to_tensor(stack)))


class TimestepConstraint(keras.constraints.Constraint):
    """Projects each timestep's weight by itself.

    Args:
        constraint: Callable that returns the projected weight of one timestep.
    """

    def __init__(self, constraint: Callable[[Tensor], Tensor]):
        self.constraint = constraint

    def __call__(self, stack: Tensor) -> Tensor:
        return ops.vectorized_map(self.constraint, ops.convert_to_tensor(stack))


def add_timestep_weight(
    layer: keras.Layer,
    name: str,
    timesteps: int,
    shape: tuple[int, ...],
    initializer: Callable[..., Tensor],
    regularizer: Callable[[Tensor], Tensor] | None = None,
    constraint: Callable[[Tensor], Tensor] | None = None,
) -> keras.Variable:
    """Adds the variable `name` of shape `(timesteps, *shape)` to `layer`.

    Args:
        layer: The layer that owns the variable.
        name: Name of the variable.
        timesteps: Number of separate weights.
        shape: Shape of the weight that one timestep uses.
        initializer, regularizer, constraint: What one timestep's weight is drawn from, penalised by
            and projected by.
    """
    return layer.add_weight(
        name=name,
        shape=(timesteps, *shape),
        initializer=TimestepInitializer(initializer),
        regularizer=None if regularizer is None else TimestepRegularizer(regularizer),
        constraint=None if constraint is None else TimestepConstraint(constraint),
    )
