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

from untied_rnn.draws import draw
from untied_rnn.regularizers import TimeSmoothness, in_single_precision

Tensor = Any

# Sums over elements, so that the penalty of the stack is already the sum over its weights.
_ELEMENTWISE = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


class TimestepInitializer(keras.initializers.Initializer):
    """Draws the weight of each set as if alone.

    Args:
        initializer: Callable `(shape, dtype)` for one weight; or a `StackInitializer`.
        sets: Numbers of the weight sets that are drawn; all from 0 on if not given.
        total: Number of all weight sets, if others are drawn elsewhere.
    """

    def __init__(
        self, initializer: Callable[..., Tensor], sets: np.ndarray | None = None, total: int | None = None
    ):
        self.initializer, self.sets, self.total = initializer, sets, total

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> Tensor:
        count, *one = shape
        sets = np.arange(count) if self.sets is None else self.sets
        return draw(self.initializer, sets, self.total or count, tuple(one), dtype)


class TimestepRegularizer(keras.regularizers.Regularizer):
    """Sums a regularizer's penalty over the weights of all timesteps.

    Args:
        regularizer: Callable that returns the penalty of one timestep's weight.
    """

    def __init__(self, regularizer: Callable[[Tensor], Tensor]):
        self.regularizer = regularizer

    def __call__(self, stack: Tensor) -> Tensor:
        stack = in_single_precision(stack)
        if type(self.regularizer) in _ELEMENTWISE:
            return self.regularizer(stack)
        return ops.sum(ops.vectorized_map(self.regularizer, stack))


class StackRegularizer(keras.regularizers.Regularizer):
    """The penalty of a whole stack, of which a variable may hold a part.

    Args:
        penalty: Function of the stack.
        whole: The stack, as a function of the variable.
    """

    def __init__(self, penalty: Callable[[Tensor], Tensor], whole: Callable[[Tensor], Tensor]):
        self.penalty, self.whole = penalty, whole

    def __call__(self, variable: Tensor) -> Tensor:
        return self.penalty(self.whole(variable))


class TimestepConstraint(keras.constraints.Constraint):
    """Projects each timestep's weight by itself.

    Args:
        constraint: Callable that returns the projected weight of one timestep.
    """

    def __init__(self, constraint: Callable[[Tensor], Tensor]):
        self.constraint = constraint

    def __call__(self, stack: Tensor) -> Tensor:
        return ops.vectorized_map(self.constraint, ops.convert_to_tensor(stack))


def timestep_penalty(regularizer: Callable[[Tensor], Tensor], cyclic: bool) -> Callable[[Tensor], Tensor]:
    """The penalty of a stacked weight: summed over its sets, or `TimeSmoothness` along them.

    Args:
        regularizer: A regularizer of one weight, or `TimeSmoothness`, which is one of the stack.
        cyclic: Whether the first weight comes after the last one again.
    """
    if not isinstance(regularizer, TimeSmoothness):
        return TimestepRegularizer(regularizer)
    if not cyclic:
        return regularizer
    return lambda stack: regularizer(ops.concatenate([stack, stack[:1]]))


def add_timestep_weight(
    layer: keras.Layer,
    name: str,
    sets: np.ndarray,
    shape: tuple[int, ...],
    initializer: Callable[..., Tensor],
    penalty: Callable[[Tensor], Tensor] | None = None,
    constraint: Callable[[Tensor], Tensor] | None = None,
    trainable: bool = True,
) -> keras.Variable:
    """Adds the variable `name` of shape `(len(sets), *shape)` to `layer`.

    Its attribute `is_timestep_stack` tells `PerTimestep` that axis 0 counts separate weights.

    Args:
        layer: The layer that owns the variable, and whose `sharing` counts all weight sets.
        name: Name of the variable.
        sets: Numbers of the separate weights that it holds.
        shape: Shape of the weight that one timestep uses.
        initializer, constraint: What one timestep's weight is drawn from, and projected by.
        penalty: What is added to the loss, as a function of the stack.
        trainable: Whether the variable is trained.
    """
    weight = layer.add_weight(
        name=name,
        shape=(len(sets), *shape),
        initializer=TimestepInitializer(initializer, sets, layer.sharing.sets),
        regularizer=penalty,
        constraint=None if constraint is None else TimestepConstraint(constraint),
        trainable=trainable,
        autocast=False,  # each timestep casts what it uses, so that gradients are added up in float32
    )
    weight.is_timestep_stack = True
    return weight
