"""The variables that a weight is made of: stacks of one entry for each set of timesteps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn._types import Constraint, Initializer, Regularizer, Tensor
from untied_rnn._weights.per_set import (
    StackRegularizer,
    TimestepConstraint,
    TimestepInitializer,
    timestep_penalty,
)
from untied_rnn._weights.sets import Sets, untied


class ConstantStack:
    """Numbers that a timestep reads and nothing changes.

    Args:
        array: `(timesteps, ...)`, one entry for each timestep.
        dtype: Type of the weights that are made with them.
    """

    def __init__(self, array: np.ndarray, dtype: str):
        self.dtype = dtype
        self._array = array
        # Not `untied`: a shorter sequence would then have to cut off the timesteps after its end.
        self.sets = dataclasses.replace(untied(len(array)), separate=False)

    def values(self, length: Any, start: Any = None) -> Tensor:
        return ops.convert_to_tensor(self._array, self.dtype)

    def sets_from(self, start: int | None) -> Sets:
        return self.sets.shifted(start or 0)

    def array(self) -> np.ndarray:
        return self._array.astype(self.dtype)


class VariableStack:
    """A parameter of every set of timesteps, stored as variables of shape `(sets, *shape)`.

    Frozen sets stand in a variable of their own, behind the trained ones, so that no optimizer gets to see
    them. The attribute `is_timestep_stack` of the variables tells `PerTimestep` that axis 0 counts separate
    parameters.

    Args:
        layer: The layer that owns the variables.
        name: Name of the parameter. That of the frozen sets' variable is `frozen_{name}`.
        shape: Shape of what one timestep reads.
        sets: Which set a timestep reads.
        frozen: Numbers of the sets that are not trained.
        initializer, regularizer, constraint: What one set's entry is drawn from, penalised by and
            projected by; or `TimeSmoothness`, which regularizes the stack.
        trainable: Whether the other sets are trained.

    Attributes:
        order: Numbers of the sets in the order in which they are stored.
        stored: Where in that order a timestep finds its set.
        variables: The variable of the trained sets, and of the frozen ones if there are any.
    """

    def __init__(
        self,
        layer: keras.Layer,
        name: str,
        shape: tuple[int, ...],
        sets: Sets,
        frozen: Sequence[int],
        initializer: Initializer,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
        trainable: bool = True,
    ):
        self.name, self.sets, self.trainable = name, sets, trainable
        trained = np.array([s for s in range(sets.count) if s not in frozen])
        self.trained_sets, self.frozen_sets = trained, np.array(frozen, int)
        self.order = np.concatenate([self.trained_sets, self.frozen_sets])
        self._places = np.argsort(self.order)
        self.stored = sets.reordered(self._places) if frozen else sets

        def add(name: str, numbers: np.ndarray, **options: Any) -> keras.Variable:
            variable = layer.add_weight(
                name=name,
                shape=(len(numbers), *shape),
                initializer=TimestepInitializer(initializer, numbers, sets.count),
                autocast=False,  # each timestep casts what it uses, so that gradients are added up in float32
                **options,
            )
            variable.is_timestep_stack = True
            return variable

        rest = [add(f"frozen_{name}", self.frozen_sets, trainable=False)] if frozen else []
        penalty = regularizer and timestep_penalty(regularizer, sets.cyclic)
        main = add(
            name,
            self.trained_sets,
            # All sets count, though some are frozen: their neighbours in time are to be like them.
            regularizer=penalty and StackRegularizer(penalty, lambda main: self._by_set([main, *rest])),
            constraint=constraint and TimestepConstraint(constraint),
            trainable=trainable,
        )
        self.variables = [main, *rest]

    def values(self, length: Any, start: Any = None) -> Tensor:
        """The sets that sequences read, in the dtype of the variables, in which gradients are added up.

        Args:
            length: The number of timesteps.
            start: The timestep that they begin at: an integer, or where the sets come again also a tensor. If
                not given they begin at the first, and the sets are as they are stored.
        """
        # `cast` reads the variable; `convert_to_tensor` would hand TensorFlow the variable itself.
        parts = [ops.cast(variable, variable.dtype) for variable in self.variables]
        stack = ops.concatenate(parts) if parts[1:] else parts[0]
        if start is not None and self.sets.cyclic:
            return ops.take(stack, self.stored.index(ops.arange(self.sets.count) + start), axis=0)
        if not self.stored.separate or (isinstance(length, int) and length == self.sets.count):
            return stack
        # `slice`, since `[:length]` would clip a length that is known only when the graph runs, and
        # one set could then be broadcast over a longer sequence.
        return ops.slice(stack, [start or 0, *[0] * (stack.ndim - 1)], (length, *stack.shape[1:]))

    def sets_from(self, start: int | None) -> Sets:
        """Where in `values` timesteps find their sets, in sequences that begin at one."""
        if start is None or self.stored.separate:
            return self.stored
        return self.sets if self.sets.cyclic else self.stored.shifted(start)

    def array(self) -> np.ndarray:
        """All sets, in the order of their numbers."""
        return np.concatenate([ops.convert_to_numpy(variable) for variable in self.variables])[self._places]

    def assign(self, array: np.ndarray) -> None:
        """Sets all entries to an array as `array` returns it."""
        # `asarray` because Keras 3.10 hands on the datasets of a file, which take no such index.
        parts = np.split(np.asarray(array)[self.order], [len(self.trained_sets)])
        for variable, part in zip(self.variables, parts[: len(self.variables)], strict=True):
            variable.assign(part)

    def _by_set(self, parts: list[Tensor]) -> Tensor:
        """The stack in the order of the sets' numbers, from what the variables hold."""
        return ops.take(ops.concatenate(parts), self._places, axis=0) if parts[1:] else parts[0]
