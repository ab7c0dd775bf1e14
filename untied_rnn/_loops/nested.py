"""Structures of tensors as flat lists, which TensorFlow's loops and custom gradients must have."""

from typing import Any

import keras

from untied_rnn._types import Nested


def flat(nested: Nested) -> list[Any]:
    """What a structure holds, in order, without the places that are `None`."""
    return [leaf for leaf in keras.tree.flatten(nested) if leaf is not None]


def nested_as(structure: Nested, leaves: Any) -> Any:
    """A structure like this one that holds other things: the inverse of `flat`."""
    remaining = iter(leaves)
    return keras.tree.map_structure(lambda leaf: None if leaf is None else next(remaining), structure)
