"""How one stacked variable holds a separate weight for every timestep.

A weight of shape `(timesteps, ...)` is one variable, so that optimizer, summary and file see one; but
initializers, regularizers and constraints are meant for the matrix that one timestep uses. On the
stack they would take time for a receptive field (Glorot), flatten it (orthogonal), normalise over it
(`MaxNorm`) or refuse its rank.
"""

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from untied_rnn._types import Constraint, Initializer, Regularizer, Tensor
from untied_rnn._weights.draws import draw
from untied_rnn.regularizers import TimeSmoothness, in_single_precision

# Sums over elements, so that the penalty of the stack is already the sum over its weights.
_ELEMENTWISE = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


class TimestepInitializer(keras.initializers.Initializer):
    """Draws the weight of each set as if alone.

    Args:
        initializer: Callable `(shape, dtype)` for one weight; or a `StackInitializer`.
        sets: Numbers of the weight sets that are drawn; all from 0 on if not given.
        total: Number of all weight sets, if others are drawn elsewhere.
    """

    def __init__(self, initializer: Initializer, sets: np.ndarray | None = None, total: int | None = None):
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

    def __init__(self, regularizer: Regularizer):
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

    def __init__(self, penalty: Regularizer, whole: Callable[[Tensor], Tensor]):
        self.penalty, self.whole = penalty, whole

    def __call__(self, variable: Tensor) -> Tensor:
        return self.penalty(self.whole(variable))


class TimestepConstraint(keras.constraints.Constraint):
    """Projects each timestep's weight by itself.

    Args:
        constraint: Callable that returns the projected weight of one timestep.
    """

    def __init__(self, constraint: Constraint):
        self.constraint = constraint

    def __call__(self, stack: Tensor) -> Tensor:
        return ops.vectorized_map(self.constraint, ops.convert_to_tensor(stack))


def timestep_penalty(regularizer: Regularizer, cyclic: bool) -> Regularizer:
    """The penalty of a stacked weight: summed over its sets, or `TimeSmoothness` along them.

    Args:
        regularizer: A regularizer of one weight; or `TimeSmoothness` or a `StackRegularizer`, which are of
            the stack.
        cyclic: Whether the first weight comes after the last one again.
    """
    if isinstance(regularizer, StackRegularizer):
        return regularizer
    if not isinstance(regularizer, TimeSmoothness):
        return TimestepRegularizer(regularizer)
    if not cyclic:
        return regularizer
    return lambda stack: regularizer(ops.concatenate([stack, stack[:1]]))
