"""Masks, shapes and nested states, in the forms in which Keras and users hand them over."""

from collections.abc import Iterable
from typing import Any

from keras import ops

from untied_rnn._types import Shape, Tensor


def checked_mask(mask: Tensor | None, sequences: Tensor) -> Tensor | None:
    """A mask of sequences as booleans of shape `(batch, timesteps, 1)`."""
    if mask is None:
        return None
    mask = ops.convert_to_tensor(first(mask))
    if len(mask.shape) == 2:
        mask = ops.expand_dims(mask, -1)
    expected = (*sequences.shape[:2], 1)
    if not compatible(expected, tuple(mask.shape)):
        raise ValueError(
            f"Expected a mask of shape {tuple(sequences.shape[:2])}, the batch and time axes of the "
            f"input. Received: mask of shape {tuple(mask.shape)}"
        )
    return ops.cast(mask, "bool")


def plain(nested: Any) -> Any:
    """Nested lists without the ones that Keras makes of them, which JAX does not look into."""
    return [plain(part) for part in nested] if isinstance(nested, (list, tuple)) else nested


def first(mask: Any) -> Any:
    """The mask of the sequences, which Keras allows to be given in a list."""
    return mask[0] if isinstance(mask, (list, tuple)) else mask


def shapes(nested: Any) -> list[Shape]:
    """All shapes in nested lists of shapes, which are tuples or lists themselves."""
    if any(isinstance(part, Iterable) for part in nested):
        return [shape for part in nested for shape in shapes(part)]
    return [tuple(nested)]


def compatible(expected: Shape, received: Shape) -> bool:
    return len(expected) == len(received) and all(
        a is None or b is None or a == b for a, b in zip(expected, received, strict=True)
    )
