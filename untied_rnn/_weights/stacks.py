"""The weights of a layer: for every weight set one, stacked."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn._types import Constraint, Index, Initializer, Regularizer, Tensor
from untied_rnn._weights.per_set import (
    StackRegularizer,
    TimestepConstraint,
    TimestepInitializer,
    timestep_penalty,
)
from untied_rnn._weights.sharing import Sharing


class WeightStack:
    """One weight of every weight set, stored as variables of shape `(sets, *shape)`.

    Frozen sets stand in a variable of their own, behind the trained ones, so that no optimizer gets to see
    them. The attribute `is_timestep_stack` of the variables tells `PerTimestep` that axis 0 counts separate
    weights.

    Args:
        layer: The layer that owns the variables.
        name: Name of the weight. That of the frozen sets' variable is `frozen_{name}`.
        shape: Shape of the weight that one timestep uses.
        sharing: Which set a timestep uses.
        frozen: Numbers of the sets that are not trained.
        initializer, regularizer, constraint: What one set's weight is drawn from, penalised by and
            projected by; or `TimeSmoothness`, which regularizes the stack.
        trainable: Whether the other sets are trained.

    Attributes:
        sets: Numbers of the weight sets in the order in which they are stored.
        stored: Where in that order a timestep finds its set.
        variables: The variable of the trained sets, and of the frozen ones if there are any.
    """

    def __init__(
        self,
        layer: keras.Layer,
        name: str,
        shape: tuple[int, ...],
        sharing: Sharing,
        frozen: Sequence[int],
        initializer: Initializer,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
        trainable: bool = True,
    ):
        self.name, self.sharing, self.trainable = name, sharing, trainable
        trained = np.array([s for s in range(sharing.sets) if s not in frozen])
        self.trained_sets, self.frozen_sets = trained, np.array(frozen, int)
        self.sets = np.concatenate([self.trained_sets, self.frozen_sets])
        self._places = np.argsort(self.sets)
        self.stored = sharing.reordered(self._places) if frozen else sharing

        def add(name: str, sets: np.ndarray, **options: Any) -> keras.Variable:
            variable = layer.add_weight(
                name=name,
                shape=(len(sets), *shape),
                initializer=TimestepInitializer(initializer, sets, sharing.sets),
                autocast=False,  # each timestep casts what it uses, so that gradients are added up in float32
                **options,
            )
            variable.is_timestep_stack = True
            return variable

        rest = [add(f"frozen_{name}", self.frozen_sets, trainable=False)] if frozen else []
        penalty = regularizer and timestep_penalty(regularizer, sharing.cyclic)
        main = add(
            name,
            self.trained_sets,
            # All sets count, though some are frozen: their neighbours in time are to be like them.
            regularizer=penalty and StackRegularizer(penalty, lambda main: self._by_set([main, *rest])),
            constraint=constraint and TimestepConstraint(constraint),
            trainable=trainable,
        )
        self.variables = [main, *rest]

    @property
    def index(self) -> Index | None:
        """The place in `values` that timestep `t` uses, as `scan` takes it: `None` is `t`."""
        return None if self.stored.separate else self.stored.index

    def values(self, length: Any) -> Tensor:
        """The sets that sequences of so many timesteps use, as they are stored.

        In the dtype of the variables, in which gradients of shared weights are added up.
        """
        # `cast` reads the variable; `convert_to_tensor` would hand TensorFlow the variable itself.
        parts = [ops.cast(variable, variable.dtype) for variable in self.variables]
        stack = ops.concatenate(parts) if parts[1:] else parts[0]
        if not self.stored.separate or (isinstance(length, int) and length == self.sharing.sets):
            return stack
        # `slice`, since `[:length]` would clip a length that is known only when the graph runs, and
        # one weight set could then be broadcast over a longer sequence.
        return ops.slice(stack, [0] * stack.ndim, (length, *stack.shape[1:]))

    def array(self) -> np.ndarray:
        """All sets, in the order of their numbers."""
        return np.concatenate([ops.convert_to_numpy(variable) for variable in self.variables])[self._places]

    def assign(self, array: np.ndarray) -> None:
        """Sets all weights to an array as `array` returns it."""
        # `asarray` because Keras 3.10 hands on the datasets of a file, which take no such index.
        parts = np.split(np.asarray(array)[self.sets], [len(self.trained_sets)])
        for variable, part in zip(self.variables, parts[: len(self.variables)], strict=True):
            variable.assign(part)

    def along_time(self, timesteps: np.ndarray) -> np.ndarray:
        """The weights that timesteps use, `(timesteps, *shape)`."""
        return self.array()[self.sharing.index(timesteps)]

    def _by_set(self, parts: list[Tensor]) -> Tensor:
        """The stack in the order of the sets' numbers, from what the variables hold."""
        return ops.take(ops.concatenate(parts), self._places, axis=0) if parts[1:] else parts[0]


class WeightStacks:
    """All weights of a layer, by name. (No dictionary, or Keras would keep account of it once more.)"""

    def __init__(self) -> None:
        self._stacks: dict[str, WeightStack] = {}

    def add(self, stack: WeightStack) -> None:
        self._stacks[stack.name] = stack

    def __contains__(self, name: str) -> bool:
        return name in self._stacks

    def __getitem__(self, name: str) -> WeightStack:
        return self._stacks[name]

    def __iter__(self) -> Iterator[WeightStack]:
        return iter(self._stacks.values())

    @property
    def has_frozen(self) -> bool:
        return any(len(stack.frozen_sets) for stack in self)

    def values(self, length: Any) -> dict[str, Tensor]:
        """See `WeightStack.values`."""
        return {stack.name: stack.values(length) for stack in self}

    def arrays(self) -> dict[str, np.ndarray]:
        """See `WeightStack.array`."""
        return {stack.name: stack.array() for stack in self}

    def assign(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets the weights of these names."""
        for name, array in arrays.items():
            self[name].assign(array)

    def along_time(self, timesteps: np.ndarray) -> dict[str, np.ndarray]:
        """See `WeightStack.along_time`."""
        return {stack.name: stack.along_time(timesteps) for stack in self}

    # In files nothing is frozen: so they are the same, whichever timesteps are.

    def to_file(self) -> dict[str, np.ndarray]:
        """All weights, by the keys that Keras gives them if none is frozen."""
        return {str(i): stack.array() for i, stack in enumerate(self._in_file_order())}

    def from_file(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets all weights to what `to_file` returned."""
        for i, stack in enumerate(self._in_file_order()):
            stack.assign(arrays[str(i)])

    def _in_file_order(self) -> list[WeightStack]:
        """As Keras orders variables: constants of a cell come last."""
        return sorted(self, key=lambda stack: not stack.trainable)
