"""`x_t P_t` for all timesteps as one batched product, however they share their parameters `P`."""

from dataclasses import dataclass
from typing import Any

from keras import ops

from untied_rnn._types import Index, Tensor
from untied_rnn._weights.sets import Sets


@dataclass(frozen=True)
class Reading:
    """What the timesteps of a sequence read of a parameter.

    Attributes:
        values: `(sets, ...)`, of any floating dtype.
        sets: Which of them a timestep reads.
    """

    values: Tensor
    sets: Sets

    @property
    def index(self) -> Index | None:
        """The place in `values` that timestep `t` reads, as `scan` takes it: `None` is `t`."""
        return None if self.sets.separate else self.sets.index

    def at(self, t: Any) -> Tensor:
        """What one timestep reads."""
        return ops.take(self.values, self.sets.index(t), axis=0)

    def along_time(self, length: Any) -> Tensor:
        """What each of so many timesteps reads, `(length, ...)`."""
        if self.sets.separate:
            return self.values
        return ops.take(self.values, self.sets.index(ops.arange(length)), axis=0)

    def product(self, x: Tensor) -> Tensor:
        """`x_t P_t`, for `x` of shape `(timesteps, batch, rows)` and matrices `P`."""
        matrices = ops.cast(self.values, x.dtype)
        if self.sets.separate:
            return ops.matmul(x, matrices)
        # Timesteps of one set become rows of one matrix: (sets, most * batch, rows), zeros where a set serves
        # less than the most. So it is `x` that is copied, and never a matrix.
        length, batch, rows = ops.shape(x)
        t, most, count = ops.arange(length), self.sets.most(length), self.sets.count
        places = self.sets.index(t) * most + self.sets.rank(t)
        groups = ops.scatter(ops.expand_dims(places, 1), x, (count * most, batch, rows))
        products = ops.matmul(ops.reshape(groups, (count, most * batch, rows)), matrices)
        return ops.take(ops.reshape(products, (count * most, batch, matrices.shape[-1])), places, axis=0)
