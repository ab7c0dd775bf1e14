"""Sequences that begin at different timesteps of a cycle, laid out so that a timestep has one weight for all.

    hours of the day      0  1  2  3  4  5  0  1  2  3  4
    begins at hour 0      x  x  x  x  x  x  -  -  -  -  -
    begins at hour 2      -  -  x  x  x  x  x  x  -  -  -       (- is masked)

So no weight is read for each sample, at the price of `cycle - 1` timesteps more. All tensors are batch-major.
"""

from typing import Any

from keras import ops

from untied_rnn._types import Tensor


def first_timestep(start: Any) -> int | None:
    """Where a loop begins to read the values of weights. Those made for a tensor `start` begin at 0."""
    return start if start is None or isinstance(start, int) else 0


def laid_out(sequences: Tensor, offsets: Tensor, cycle: int) -> Tensor:
    """Moves each sample by its offset, with zeros around.

    Args:
        sequences: `(batch, timesteps, ...)`.
        offsets: `(batch,)`, from 0 to `cycle - 1`.
        cycle: Number of timesteps after which the weights come again.
    """
    padding = [(0, 0), (0, cycle - 1), *[(0, 0)] * (len(sequences.shape) - 2)]
    padded = ops.pad(sequences, padding)
    length = ops.shape(padded)[1]
    return _taken(padded, (ops.arange(length) - ops.expand_dims(offsets, 1)) % length)


def presence(length: Any, offsets: Tensor, cycle: int) -> Tensor:
    """Where `laid_out` puts sequences of so many timesteps: a mask `(batch, length + cycle - 1)`."""
    places = ops.arange(length + cycle - 1) - ops.expand_dims(offsets, 1)
    return ops.logical_and(places >= 0, places < length)


def taken_back(sequences: Tensor, offsets: Tensor, cycle: int) -> Tensor:
    """The inverse of `laid_out`."""
    length = ops.shape(sequences)[1] - (cycle - 1)
    return _taken(sequences, ops.arange(length) + ops.expand_dims(offsets, 1))


def _taken(sequences: Tensor, places: Tensor) -> Tensor:
    """`sequences[b, places[b, t]]`."""
    for _ in sequences.shape[2:]:
        places = ops.expand_dims(places, -1)
    shape = (*ops.shape(places)[:2], *ops.shape(sequences)[2:])
    return ops.take_along_axis(sequences, ops.broadcast_to(places, shape), axis=1)
