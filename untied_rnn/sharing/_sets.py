"""Sharings in which timesteps use whole weights, each one of several."""

import dataclasses
import reprlib
from collections.abc import Sequence
from typing import Any

import keras

from untied_rnn import _checks
from untied_rnn._weights import sets
from untied_rnn._weights.sets import Sets
from untied_rnn.sharing._base import SetSharing

_register = keras.saving.register_keras_serializable(package="untied_rnn")


@_register
@dataclasses.dataclass(frozen=True)
class Untied(SetSharing):
    """Each timestep has weights of its own. The default of all layers.

    ```
    W_t
    ```
    """

    def sets(self, timesteps: int | None) -> Sets:
        assert timesteps is not None
        return sets.untied(timesteps)


@_register
@dataclasses.dataclass(frozen=True)
class Tied(SetSharing):
    """All timesteps share one weight, as in Keras's layers. Sequences may have any length.

    ```
    W_t = W
    ```
    """

    def sets(self, timesteps: int | None) -> Sets:
        return sets.tied()

    @property
    def any_length(self) -> bool:
        return True


@_register
@dataclasses.dataclass(frozen=True)
class Blocks(SetSharing):
    """Each run of `size` timesteps shares a weight.

    ```
    W_t = W_{t // size}
    ```

    Args:
        size: Positive integer. The last block is shorter where it does not divide the number of timesteps.
    """

    size: int

    def __post_init__(self) -> None:
        _checks.positive_integer("size", self.size)

    def sets(self, timesteps: int | None) -> Sets:
        assert timesteps is not None
        return sets.untied(timesteps) if self.size == 1 else sets.blocks(self.size, timesteps)


@_register
@dataclasses.dataclass(frozen=True)
class Periodic(SetSharing):
    """Every `period`-th timestep shares a weight. Sequences may have any length.

    ```
    W_t = W_{t % period}
    ```

    Args:
        period: Positive integer, such as 24 for a weight per hour of the day.
    """

    period: int

    def __post_init__(self) -> None:
        _checks.positive_integer("period", self.period)

    def sets(self, timesteps: int | None) -> Sets:
        return sets.periodic(self.period)

    @property
    def any_length(self) -> bool:
        return True


@_register
@dataclasses.dataclass(frozen=True)
class Listed(SetSharing):
    """A list says which weight a timestep uses.

    ```
    W_t = W_{index[t]}
    ```

    Args:
        index: An integer for each timestep. All from 0 to the largest must be used.
    """

    index: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", tuple(_checks.set_numbers("index", self.index) or ()))

    def __repr__(self) -> str:
        return f"Listed(index={reprlib.repr(list(self.index))})"

    def get_config(self) -> dict[str, Any]:
        return {"index": list(self.index)}

    def sets(self, timesteps: int | None) -> Sets:
        return sets.listed(self.index)

    @property
    def timesteps(self) -> int | None:
        return len(self.index)
