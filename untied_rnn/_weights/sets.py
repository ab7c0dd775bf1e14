"""Which of several weights a timestep uses.

The weights that timesteps share are stored once, in a stack `(sets, ...)`. `Sets` says which of them a
timestep uses, so that nothing needs a stack of one copy for each timestep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from keras import ops

from untied_rnn._types import Index


@dataclass(frozen=True)
class Sets:
    """A map from timesteps to weight sets.

    Args:
        count: Number of weight sets.
        index: The set that timestep `t` uses.
        rank: How many earlier timesteps use the same set as timestep `t`.
        most: The most timesteps that share one set, in a sequence of so many timesteps.
        separate: Whether timestep `t` uses set `t`, and no other does.
        cyclic: Whether the first set follows the last one again.
    """

    count: int
    index: Index
    rank: Index
    most: Index
    separate: bool = False
    cyclic: bool = False

    def shifted(self, start: int) -> "Sets":
        """The same for sequences that begin at timestep `start`."""
        return replace(
            self,
            index=lambda t: self.index(t + start),
            rank=lambda t: self.rank(t + start),
            most=lambda length: self.most(length + start),
        )

    def reordered(self, places: np.ndarray) -> "Sets":
        """The same for a stack in which set `s` stands at `places[s]`."""
        return replace(self, index=lambda t: _look_up(places, self.index(t)), separate=False)


def untied(timesteps: int) -> Sets:
    """Each timestep has its own set."""
    return Sets(timesteps, lambda t: t, lambda t: t * 0, lambda length: 1, separate=True)


def blocks(size: int, timesteps: int) -> Sets:
    """Each run of `size` timesteps shares a set."""
    return Sets(-(-timesteps // size), lambda t: t // size, lambda t: t % size, lambda length: size)


def periodic(period: int) -> Sets:
    """Every `period`-th timestep shares a set."""
    return Sets(
        period, lambda t: t % period, lambda t: t // period, lambda length: -(-length // period), cyclic=True
    )


def tied() -> Sets:
    """All timesteps share one set."""
    return Sets(1, lambda t: t * 0, lambda t: t, lambda length: length)


def listed(index: Sequence[int]) -> Sets:
    """Timestep `t` uses set `index[t]`."""
    table = np.asarray(index)
    rank = np.array([np.count_nonzero(table[:t] == table[t]) for t in range(len(table))])
    most = int(np.bincount(table).max())
    return Sets(
        int(table.max()) + 1, lambda t: _look_up(table, t), lambda t: _look_up(rank, t), lambda length: most
    )


def frozen_sets(sets: Sets, timesteps: int, frozen_timesteps: Sequence[int]) -> list[int]:
    """The weight sets that are not trained.

    Raises:
        ValueError: If not all timesteps that use one of them are frozen, or all timesteps are.
    """
    frozen = list(frozen_timesteps)
    received = f"Received: frozen_timesteps={frozen}, with weights for {timesteps} timesteps"
    if any(t >= timesteps for t in frozen):
        raise ValueError(f"Expected `frozen_timesteps` from 0 to {timesteps - 1}. {received}")
    trained = {int(sets.index(t)) for t in range(timesteps) if t not in frozen}
    found = {int(sets.index(t)) for t in frozen}
    if frozen and not trained:
        raise ValueError(
            f"Expected some timesteps to be trained (`trainable=False` freezes a layer). {received}"
        )
    if found & trained:
        raise ValueError(
            f"Expected timesteps that share weights to be frozen together. {received}, of which "
            f"{[t for t in frozen if int(sets.index(t)) in trained]} share theirs with trained ones"
        )
    return sorted(found)


def _look_up(table: np.ndarray, t: Any) -> Any:
    if isinstance(t, (int, np.integer, np.ndarray)):
        return table[t]
    return ops.take(ops.convert_to_tensor(table, "int32"), t)
