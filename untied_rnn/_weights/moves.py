"""Moves between tied and untied: new layers from trained ones.

Every function returns a new, built layer and leaves the old one as it is. The methods of `UntiedLayer` that
call them say what they are for.
"""

import math
from typing import Any, TypeVar

import keras
import numpy as np

from untied_rnn.sharing import LowRank, SetSharing

L = TypeVar("L", bound=keras.Layer)  # an `UntiedLayer`, which this module does not import


def from_tied(cls: type[L], layer: keras.Layer, timesteps: int | None, sharing: dict[str, Any]) -> L:
    """See `UntiedLayer.from_tied`."""
    if not isinstance(layer, cls.tied_class):
        raise TypeError(f"Expected a `keras.layers.{cls.tied_class.__name__}`. Received: {layer!r}")
    if not layer.built:
        raise ValueError(f"Expected a built layer. Received: {layer!r}, which has no weights yet.")
    _check(cls, sharing)
    new = like(layer, cls, timesteps=timesteps, **sharing)
    length = new.timesteps or new.timestep_weights.cycle
    for weight, value in zip(new.timestep_weights, layer.get_weights(), strict=True):
        weight.fit(np.broadcast_to(value, (length, *value.shape)))
    return new


def refine(layer: L, changes: dict[str, Any]) -> L:
    """See `UntiedLayer.refine`."""
    new, length = _changed(layer, changes)
    timesteps = np.arange(length)
    for weight, old in zip(new.timestep_weights, layer.timestep_weights, strict=True):
        expected, received = old.along_time(timesteps), weight.along_time(timesteps)
        # Whole weights are copied; others are computed.
        tolerance = 0.0 if isinstance(weight.sharing, SetSharing) else 1e-5 * np.abs(expected).max()
        changed = np.abs(received - expected).reshape(length, -1).max(axis=1) > tolerance
        if changed.any():
            raise ValueError(
                "Expected a sharing that has room for the weights of this layer, as `Blocks` of a size that "
                f"divides this layer's. Received: {changes}, which would change '{old.name}' at the "
                f"timesteps {timesteps[changed].tolist()} of {layer!r}. `averaged` takes the nearest weights"
            )
    return new


def averaged(layer: L, changes: dict[str, Any]) -> L:
    """See `UntiedLayer.averaged`."""
    if not any(name in changes for name in layer.sharing_arguments()):
        changes = {"sharing": "tied", **changes}
    return _changed(layer, {"frozen_timesteps": None, **changes})[0]


def compress(layer: L, rank: int) -> tuple[L, dict[str, float]]:
    """See `UntiedLayer.compress`."""
    new, length = _changed(layer, {"sharing": LowRank(rank), "frozen_timesteps": None})
    errors = {}
    for weight, old in zip(new.timestep_weights, layer.timestep_weights, strict=True):
        before, after = (w.along_time(np.arange(length)).astype("float64") for w in (old, weight))
        size = np.linalg.norm(before)
        errors[old.name] = float(np.linalg.norm(after - before) / size) if size else 0.0
    return new, errors


def frozen(layer: L, timesteps: list[int]) -> L:
    """See `UntiedLayer.freeze`."""
    return _changed(layer, {"frozen_timesteps": timesteps})[0]


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


def _changed(layer: L, changes: dict[str, Any]) -> tuple[L, int]:
    """A layer with other arguments and the nearest weights, and the number of timesteps that tell them."""
    layer.check_built()
    _check(type(layer), changes)
    if "sharing" in changes:  # speaks for all weights
        changes = {**dict.fromkeys(layer.sharing_arguments()), **changes}
    new = like(layer, type(layer), **changes)
    if new.timesteps and layer.timesteps and new.timesteps > layer.timesteps:
        raise ValueError(
            f"Expected at most {layer.timesteps} timesteps, that have weights. Received: {changes}"
        )
    length = (
        new.timesteps or layer.timesteps or math.lcm(*(one.timestep_weights.cycle for one in (layer, new)))
    )
    # By position, for the layers within a copy of a cell may have names with other numbers.
    for weight, old in zip(new.timestep_weights, layer.timestep_weights, strict=True):
        weight.fit(old.along_time(np.arange(length)), old)
    return new, length


def _check(cls: type[L], changes: dict[str, Any]) -> None:
    known = ("timesteps", *cls.sharing_arguments(), "frozen_timesteps")
    if unknown := {name: value for name, value in changes.items() if name not in known}:
        raise TypeError(
            f"Expected arguments that say how timesteps share or train weights: {', '.join(known)}. "
            f"The others stay as they are. Received: {unknown}"
        )
