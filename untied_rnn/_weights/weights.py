"""The weights of a layer, each made for a timestep of what that reads of some stacks."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn._loops.batched import Reading
from untied_rnn._loops.scan import Made, Stack
from untied_rnn._types import Constraint, Initializer, Regularizer, Tensor
from untied_rnn._weights.per_set import StackRegularizer, timestep_penalty
from untied_rnn._weights.sets import frozen_sets
from untied_rnn._weights.stacks import ConstantStack, VariableStack
from untied_rnn.regularizers import TimeSmoothness
from untied_rnn.sharing import SetSharing, Sharing


class Weight:
    """A weight that differs between timesteps.

    Args:
        layer: The layer that owns the variables.
        name: Name of the weight.
        shape: Shape of the weight that one timestep uses.
        sharing: How it comes from parameters.
        timesteps: Number of timesteps that there are weights for, or `None` for any.
        frozen_timesteps: Timesteps whose weights are not trained.
        initializer, regularizer, constraint: What one timestep's weight is drawn from, penalised by and
            projected by. A sharing with several parameters applies the regularizer to each of them.
        trainable: Whether the other timesteps' weights are trained.
    """

    def __init__(
        self,
        layer: keras.Layer,
        name: str,
        shape: tuple[int, ...],
        sharing: Sharing,
        timesteps: int | None,
        frozen_timesteps: Sequence[int],
        initializer: Initializer,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
        trainable: bool = True,
    ):
        self.name, self.sharing, self.timesteps = name, sharing, timesteps
        if constraint is not None and not isinstance(sharing, SetSharing):
            raise ValueError(
                f"Expected no constraint on '{name}', whose weights are made of several parameters. "
                f"Received: {constraint!r}, with {sharing!r}"
            )
        self.stacks: dict[str, VariableStack | ConstantStack] = {}
        smoothness = None
        if isinstance(regularizer, TimeSmoothness) and not isinstance(sharing, SetSharing):
            # Of the weights, and not of what they are made of; so the first variable stands for all.
            smoothness, regularizer = timestep_penalty(regularizer, timesteps is None), None
        for suffix, parameter in sharing.parameters(shape, timesteps, initializer).items():
            if isinstance(parameter, np.ndarray):
                self.stacks[suffix] = ConstantStack(parameter, layer.variable_dtype)
                continue
            sets = parameter.sharing.sets(timesteps)
            frozen = frozen_sets(sets, timesteps or sets.count, frozen_timesteps)
            self.stacks[suffix] = VariableStack(
                layer,
                f"{name}_{suffix}" if suffix else name,
                parameter.shape,
                sets,
                frozen,
                parameter.initializer,
                regularizer if suffix or smoothness is None else StackRegularizer(smoothness, self._whole),
                constraint,
                trainable,
            )

    @property
    def cycle(self) -> int:
        """After how many timesteps the weights come again, where there are weights for any number of them."""
        return math.lcm(*(stack.sets.count for stack in self.variable_stacks.values()))

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the first parameter first."""
        return [variable for stack in self.variable_stacks.values() for variable in stack.variables]

    @property
    def variable_stacks(self) -> dict[str, VariableStack]:
        return {name: stack for name, stack in self.stacks.items() if isinstance(stack, VariableStack)}

    def values(self, length: Any, start: Any = None) -> list[Tensor]:
        """The parameters for sequences of so many timesteps that begin at one; see `VariableStack.values`."""
        return [stack.values(length, start) for stack in self.stacks.values()]

    def _whole(self, main: Tensor) -> Tensor:
        """The weights of all timesteps."""
        length = self.timesteps or self.cycle
        return self.sharing.along_time(length, *self.readings(self.values(length)))

    def readings(self, values: list[Tensor], start: int | None = None) -> list[Reading]:
        """What timesteps read of these values, in sequences that begin at one."""
        pairs = zip(values, self.stacks.values(), strict=True)
        return [Reading(v, stack.sets_from(start)) for v, stack in pairs]

    def of(self, values: list[Tensor], start: int | None = None) -> Stack | Made:
        """The weight that is made of these values, for loops."""
        stacks = [Stack(reading.values, reading.index) for reading in self.readings(values, start)]
        return stacks[0] if isinstance(self.sharing, SetSharing) else Made(tuple(stacks), self.sharing.weight)

    def at(self, t: Any, values: list[Tensor], start: int | None = None) -> Tensor:
        """The weight of one timestep."""
        return self.sharing.weight(*(reading.at(t) for reading in self.readings(values, start)))

    def along_time(self, timesteps: np.ndarray) -> np.ndarray:
        """The weights that timesteps use, `(timesteps, *shape)`."""
        parts = [stack.array()[stack.sets.index(timesteps)] for stack in self.stacks.values()]
        if isinstance(self.sharing, SetSharing):
            return parts[0]
        made = (self.sharing.weight(*map(ops.convert_to_tensor, one)) for one in zip(*parts, strict=True))
        return np.stack([ops.convert_to_numpy(weight) for weight in made])

    def fit(self, weights: np.ndarray, source: "Weight | None" = None) -> None:
        """Sets the parameters so that the weights of all timesteps are as close as they can be to these.

        Args:
            weights: `(timesteps, ...)`.
            source: The weight of another layer that they are from.
        """
        start = {name: stack.array() for name, stack in self.variable_stacks.items()}
        others = source.variable_stacks if source else {}
        for name in start.keys() & others.keys():
            array = others[name].array()
            start[name] = array if array.shape == start[name].shape else start[name]
        for name, array in self.sharing.fit(weights, start).items():
            self.variable_stacks[name].assign(array)


class Weights:
    """All weights of a layer, by name. (No dictionary, or Keras would keep account of it once more.)"""

    def __init__(self) -> None:
        self._weights: dict[str, Weight] = {}

    def add(self, weight: Weight) -> None:
        self._weights[weight.name] = weight

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def __getitem__(self, name: str) -> Weight:
        return self._weights[name]

    def get(self, name: str) -> Weight | None:
        return self._weights.get(name)

    def __iter__(self) -> Iterator[Weight]:
        return iter(self._weights.values())

    @property
    def stacks(self) -> list[VariableStack]:
        """The stacks of all weights."""
        return [stack for weight in self for stack in weight.variable_stacks.values()]

    @property
    def cycle(self) -> int:
        """See `Weight.cycle`."""
        return math.lcm(*(weight.cycle for weight in self))

    @property
    def has_frozen(self) -> bool:
        return any(len(stack.frozen_sets) for stack in self.stacks)

    def values(self, length: Any, start: Any = None) -> dict[str, list[Tensor]]:
        """See `Weight.values`."""
        return {weight.name: weight.values(length, start) for weight in self}

    def along_time(self, timesteps: np.ndarray) -> dict[str, np.ndarray]:
        """See `Weight.along_time`."""
        return {weight.name: weight.along_time(timesteps) for weight in self}

    # In files nothing is frozen: so they are the same, whichever timesteps are.

    def to_file(self) -> dict[str, np.ndarray]:
        """All parameters, by the keys that Keras gives them if none is frozen."""
        return {str(i): stack.array() for i, stack in enumerate(self._in_file_order())}

    def from_file(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets all parameters to what `to_file` returned."""
        for i, stack in enumerate(self._in_file_order()):
            stack.assign(arrays[str(i)])

    def _in_file_order(self) -> list[VariableStack]:
        """As Keras orders variables: constants of a cell come last."""
        return sorted(self.stacks, key=lambda stack: not stack.trainable)


def affine(
    x: Tensor, kernel: Weight, bias: Weight | None, values: dict[str, list[Tensor]], start: int | None = None
) -> Tensor:
    """`x_t W_t + b_t` for all timesteps at once.

    Args:
        x: `(timesteps, batch, input_dim)`.
        kernel, bias: The weights, W and b.
        values: What weights are made of, by name.
        start: The timestep that `x` begins at; the first one if not given.
    """
    y = kernel.sharing.product(x, *kernel.readings(values[kernel.name], start))
    if bias is None:
        return y
    b = bias.sharing.along_time(ops.shape(x)[0], *bias.readings(values[bias.name], start))
    return y + ops.cast(ops.expand_dims(b, 1), y.dtype)


def affine_at(
    t: Any,
    x: Tensor,
    kernel: Weight,
    bias: Weight | None,
    values: dict[str, list[Tensor]],
    start: int | None = None,
) -> Tensor:
    """`x W_t + b_t` for one timestep; see `affine`."""
    y = ops.matmul(x, ops.cast(kernel.at(t, values[kernel.name], start), x.dtype))
    return y if bias is None else y + ops.cast(bias.at(t, values[bias.name], start), y.dtype)
