"""Moves between tied and untied: new layers from trained ones.

Every function returns a new, built layer and leaves the old one as it is. The methods of `UntiedLayer` that
call them say what they are for.
"""

import math
from typing import Any, TypeVar

import keras
import numpy as np

from untied_rnn._weights.sharing import SHARING_ARGUMENTS

L = TypeVar("L", bound=keras.Layer)  # an `UntiedLayer`, which this module does not import

_CHANGES = ("timesteps", *SHARING_ARGUMENTS, "frozen_timesteps")


def from_tied(cls: type[L], layer: keras.Layer, timesteps: int | None, sharing: dict[str, Any]) -> L:
    """See `UntiedLayer.from_tied`."""
    if not isinstance(layer, cls.tied_class):
        raise TypeError(f"Expected a `keras.layers.{cls.tied_class.__name__}`. Received: {layer!r}")
    if not layer.built:
        raise ValueError(f"Expected a built layer. Received: {layer!r}, which has no weights yet.")
    _check(sharing)
    new = like(layer, cls, timesteps=timesteps, **sharing)
    weights = zip(new.stacks, layer.get_weights(), strict=True)
    new.stacks.assign({stack.name: np.repeat(w[None], stack.sharing.sets, axis=0) for stack, w in weights})
    return new


def refine(layer: L, changes: dict[str, Any]) -> L:
    """See `UntiedLayer.refine`."""
    new, sources = _changed(layer, changes)
    for s, sets in enumerate(sources):
        if len(set(sets)) > 1:
            raise ValueError(
                "Expected a refinement, where timesteps share weights only if they already do. "
                f"Received: {changes}, where timesteps that use the weight sets {sorted(set(sets))} of this "
                f"layer would share set {s}. Give a `block_size` that divides this layer's, or "
                "`weight_index`; `averaged` takes means instead"
            )
    return new


def averaged(layer: L, changes: dict[str, Any]) -> L:
    """See `UntiedLayer.averaged`."""
    if not any(name in changes for name in SHARING_ARGUMENTS):
        timesteps = changes.get("timesteps", layer.timesteps)
        changes |= {"period": 1} if timesteps is None else {"block_size": timesteps}
    return _changed(layer, {"frozen_timesteps": None, **changes})[0]


def frozen(layer: L, timesteps: list[int]) -> L:
    """See `UntiedLayer.freeze`."""
    sharing = {name: getattr(layer, name) for name in SHARING_ARGUMENTS}
    return _changed(layer, {**sharing, "frozen_timesteps": timesteps})[0]


def like(layer: keras.Layer, cls: type[L], **changes: Any) -> L:
    """A built layer of class `cls` with the arguments of another one but for `changes`, and new weights.

    States of a stateful layer are carried over.
    """
    new = cls(**{**cls.arguments_of(layer), **changes})
    config = layer.get_build_config()
    shape = config["input_shape"] if "input_shape" in config else config["shapes_dict"]["sequences_shape"]
    states = keras.tree.flatten(getattr(layer, "states", None) or [])
    new.build((states[0].shape[0] if states else None, new.timesteps, *shape[2:]))
    for state, other in zip(getattr(new, "states", None) or [], states, strict=True):
        state.assign(other)
    return new


def _changed(layer: L, changes: dict[str, Any]) -> tuple[L, list[list[int]]]:
    """A layer with other arguments, and the old sets whose mean each of its weight sets is.

    An old set counts as often as it has timesteps.
    """
    layer.check_built()
    _check(changes)
    new = like(layer, type(layer), **{**dict.fromkeys(SHARING_ARGUMENTS), **changes})
    if new.timesteps and layer.timesteps and new.timesteps > layer.timesteps:
        raise ValueError(
            f"Expected at most {layer.timesteps} timesteps, that have weights. Received: {changes}"
        )
    limit = new.timesteps or layer.timesteps or math.lcm(layer.sharing.sets, new.sharing.sets)
    timesteps = np.arange(limit)
    old_sets, new_sets = layer.set_of(timesteps), new.set_of(timesteps)
    sources = [old_sets[new_sets == s].tolist() for s in range(new.sharing.sets)]
    if not all(sources):
        raise ValueError(
            f"Expected a timestep for each weight set, of {limit} timesteps. Received: {changes}"
        )
    # By position, for the layers within a copy of a cell may have names with other numbers.
    for stack, old in zip(new.stacks, layer.stacks, strict=True):
        array = old.array()
        stack.assign(np.stack([_mean(array, sets) for sets in sources]))
    return new, sources


def _check(changes: dict[str, Any]) -> None:
    if unknown := {name: value for name, value in changes.items() if name not in _CHANGES}:
        raise TypeError(
            f"Expected arguments that say which timesteps share or train weights: {', '.join(_CHANGES)}. "
            f"The others stay as they are. Received: {unknown}"
        )


def _mean(stack: np.ndarray, sets: list[int]) -> np.ndarray:
    # In double precision, for NumPy would add up bfloat16 in bfloat16. Exact where all are equal.
    values = stack[sets].astype("float64")
    return (values[0] + (values - values[0]).mean(axis=0)).astype(stack.dtype)
