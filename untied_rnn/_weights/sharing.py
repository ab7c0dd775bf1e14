"""Which timesteps share a weight set: the dial between untied and tied.

The weights that `timesteps` share are stored once, in a stack `(sets, ...)`. A `Sharing` says which of them
a timestep uses, so that nothing needs a stack of one copy for each timestep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from keras import ops

Tensor = Any
# Of integers as Python has them, NumPy or a tensor, so that loops and graphs can ask as well.
IntegerFunction = Callable[[Any], Any]


@dataclass(frozen=True)
class Sharing:
    """A map from timesteps to weight sets.

    Args:
        sets: Number of weight sets.
        index: The set that timestep `t` uses.
        rank: How many earlier timesteps use the same set as timestep `t`.
        most: The most timesteps that share one set, in a sequence of so many timesteps.
        separate: Whether timestep `t` uses set `t`, and no other does.
    """

    sets: int
    index: IntegerFunction
    rank: IntegerFunction
    most: IntegerFunction
    separate: bool = False

    def reordered(self, position: np.ndarray) -> "Sharing":
        """The same for a stack in which set `s` stands at `position[s]`."""
        return Sharing(self.sets, lambda t: _look_up(position, self.index(t)), self.rank, self.most)


def untied(timesteps: int) -> Sharing:
    """Each timestep has its own set."""
    return Sharing(timesteps, lambda t: t, lambda t: t * 0, lambda length: 1, separate=True)


def blocks(size: int, timesteps: int) -> Sharing:
    """Each run of `size` timesteps shares a set."""
    return Sharing(-(-timesteps // size), lambda t: t // size, lambda t: t % size, lambda length: size)


def periodic(period: int) -> Sharing:
    """Every `period`-th timestep shares a set."""
    return Sharing(period, lambda t: t % period, lambda t: t // period, lambda length: -(-length // period))


def listed(weight_index: Sequence[int]) -> Sharing:
    """Timestep `t` uses set `weight_index[t]`."""
    index = np.asarray(weight_index)
    rank = np.array([np.count_nonzero(index[:t] == index[t]) for t in range(len(index))])
    most = int(np.bincount(index).max())
    return Sharing(
        int(index.max()) + 1, lambda t: _look_up(index, t), lambda t: _look_up(rank, t), lambda length: most
    )


def _look_up(table: np.ndarray, t: Any) -> Any:
    if isinstance(t, (int, np.integer, np.ndarray)):
        return table[t]
    return ops.take(ops.convert_to_tensor(table, "int32"), t)
