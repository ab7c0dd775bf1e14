"""Which timesteps share a weight set: from untied over blocks and periods to tied.

The weights that `timesteps` share are stored once, in a stack `(sets, ...)`. A `Sharing` says which of them
a timestep uses, so that nothing needs a stack of one copy for each timestep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from keras import ops

from untied_rnn._types import Index

# The arguments of a layer that say how timesteps share weights, of which at most one is given.
SHARING_ARGUMENTS = ("block_size", "period", "weight_index")


@dataclass(frozen=True)
class Sharing:
    """A map from timesteps to weight sets.

    Args:
        sets: Number of weight sets.
        index: The set that timestep `t` uses.
        rank: How many earlier timesteps use the same set as timestep `t`.
        most: The most timesteps that share one set, in a sequence of so many timesteps.
        separate: Whether timestep `t` uses set `t`, and no other does.
        cyclic: Whether the first set follows the last one again.
    """

    sets: int
    index: Index
    rank: Index
    most: Index
    separate: bool = False
    cyclic: bool = False

    def reordered(self, places: np.ndarray) -> "Sharing":
        """The same for a stack in which set `s` stands at `places[s]`."""
        return replace(self, index=lambda t: _look_up(places, self.index(t)), separate=False)


def untied(timesteps: int) -> Sharing:
    """Each timestep has its own set."""
    return Sharing(timesteps, lambda t: t, lambda t: t * 0, lambda length: 1, separate=True)


def blocks(size: int, timesteps: int) -> Sharing:
    """Each run of `size` timesteps shares a set."""
    return Sharing(-(-timesteps // size), lambda t: t // size, lambda t: t % size, lambda length: size)


def periodic(period: int) -> Sharing:
    """Every `period`-th timestep shares a set."""
    return Sharing(
        period, lambda t: t % period, lambda t: t // period, lambda length: -(-length // period), cyclic=True
    )


def listed(weight_index: Sequence[int]) -> Sharing:
    """Timestep `t` uses set `weight_index[t]`."""
    index = np.asarray(weight_index)
    rank = np.array([np.count_nonzero(index[:t] == index[t]) for t in range(len(index))])
    most = int(np.bincount(index).max())
    return Sharing(
        int(index.max()) + 1, lambda t: _look_up(index, t), lambda t: _look_up(rank, t), lambda length: most
    )


def sharing_of(
    timesteps: int | None, block_size: int | None, period: int | None, weight_index: Sequence[int] | None
) -> Sharing:
    """The sharing that a layer's arguments ask for; `timesteps` is needed without `period`."""
    if period is not None:
        return periodic(period)
    if weight_index is not None:
        return listed(weight_index)
    assert timesteps is not None
    return untied(timesteps) if block_size in (None, 1) else blocks(block_size, timesteps)


def frozen_sets(sharing: Sharing, timesteps: int, frozen_timesteps: Sequence[int]) -> list[int]:
    """The weight sets that are not trained.

    Raises:
        ValueError: If not all timesteps that use one of them are frozen, or all timesteps are.
    """
    frozen = list(frozen_timesteps)
    received = f"Received: frozen_timesteps={frozen}, with weights for {timesteps} timesteps"
    if any(t >= timesteps for t in frozen):
        raise ValueError(f"Expected `frozen_timesteps` from 0 to {timesteps - 1}. {received}")
    trained = {int(sharing.index(t)) for t in range(timesteps) if t not in frozen}
    sets = {int(sharing.index(t)) for t in frozen}
    if frozen and not trained:
        raise ValueError(
            f"Expected some timesteps to be trained (`trainable=False` freezes a layer). {received}"
        )
    if sets & trained:
        raise ValueError(
            f"Expected timesteps that share weights to be frozen together. {received}, of which "
            f"{[t for t in frozen if int(sharing.index(t)) in trained]} share theirs with trained ones"
        )
    return sorted(sets)


def _look_up(table: np.ndarray, t: Any) -> Any:
    if isinstance(t, (int, np.integer, np.ndarray)):
        return table[t]
    return ops.take(ops.convert_to_tensor(table, "int32"), t)
