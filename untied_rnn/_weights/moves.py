"""Moves along the dial from tied to untied: new layers from trained ones."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np

from untied_rnn import arguments
from untied_rnn.layer import DIAL, UntiedLayer


class DialLayer(UntiedLayer):
    """Base class of layers that can be made from others with more weight sets, or fewer.

    Every method returns a new, built layer and leaves the old one as it is.
    """

    tied_class: ClassVar[type[keras.Layer]]

    @classmethod
    def from_tied(cls, layer: keras.Layer, timesteps: int | None = None, **dial: Any) -> Self:
        """An untied layer that computes what a tied one does: its weights, repeated.

        Args:
            layer: A built layer of Keras's class.
            timesteps: Number of timesteps: the length of the longest sequence to process.
            **dial: `block_size`, `period` or `weight_index`, if timesteps are to share weights, and
                `frozen_timesteps`.

        Returns:
            A built layer with the same configuration and outputs. Its regularizers, like its weights,
            count once per weight set.

        Raises:
            TypeError: If `layer` is of another class, or for another argument.
            ValueError: If `layer` is not built.
        """
        if not isinstance(layer, cls.tied_class):
            raise TypeError(f"Expected a `keras.layers.{cls.tied_class.__name__}`. Received: {layer!r}")
        if not layer.built:
            raise ValueError(f"Expected a built layer. Received: {layer!r}, which has no weights yet.")
        _check_dial(dial)
        new = cls(**{**cls._arguments_of(layer), "timesteps": timesteps, **dial})
        new._build_like(layer)
        weights = zip(new._arrays(), layer.get_weights(), strict=True)
        new._assign({name: np.repeat(w[None], new.sharing.sets, axis=0) for name, w in weights})
        return new

    def untie(self, timesteps: int | None = None) -> Self:
        """A layer with a weight set for every timestep, that computes the same.

        Args:
            timesteps: Number of timesteps. Needed where the layer has no limit (with `period`).
        """
        return self.refine(**({} if timesteps is None else {"timesteps": timesteps}))

    def refine(self, **dial: Any) -> Self:
        """A layer with more weight sets, that computes the same.

        Args:
            **dial: `block_size`, `period` or `weight_index` of the new layer, and `timesteps` if that
                changes.

        Raises:
            ValueError: If timesteps that have different weights would have to share them.
        """
        new, sources = self._changed(dial)
        for s, sets in enumerate(sources):
            if len(set(sets)) > 1:
                raise ValueError(
                    "Expected a refinement, where timesteps share weights only if they already do. "
                    f"Received: {dial}, where timesteps that use the weight sets {sorted(set(sets))} of this "
                    f"layer would share set {s}. Give a `block_size` that divides this layer's, or "
                    "`weight_index`; `averaged` takes means instead"
                )
        return new

    def averaged(self, **dial: Any) -> Self:
        """A layer with fewer weight sets, each the mean over its timesteps of the weights they used.

        Args:
            **dial: As in `refine`. One set for all timesteps if none of the three is given. Nothing is
                frozen, unless `frozen_timesteps` says so.
        """
        if not any(name in dial for name in DIAL):
            timesteps = dial.get("timesteps", self.timesteps)
            dial |= {"period": 1} if timesteps is None else {"block_size": timesteps}
        return self._changed({"frozen_timesteps": None, **dial})[0]

    def freeze(self, timesteps: Sequence[int]) -> Self:
        """A layer that computes the same and does not train the weights of these timesteps.

        Args:
            timesteps: Timesteps from 0. All others are trained, even if they were frozen before.
        """
        dial = {name: getattr(self, name) for name in DIAL}
        return self._changed({**dial, "frozen_timesteps": arguments.check("frozen_timesteps", timesteps)})[0]

    def _changed(self, changes: dict[str, Any]) -> tuple[Self, list[list[int]]]:
        """A built layer with other arguments, and the old sets whose mean each of its weight sets is.

        An old set counts as often as it has timesteps.
        """
        self._check_built()
        _check_dial(changes)
        new = type(self)(**{**self._arguments_of(self), **dict.fromkeys(DIAL), **changes})
        new._build_like(self)
        if new.timesteps and self.timesteps and new.timesteps > self.timesteps:
            raise ValueError(
                f"Expected at most {self.timesteps} timesteps, that have weights. Received: {changes}"
            )
        limit = new.timesteps or self.timesteps or math.lcm(self.sharing.sets, new.sharing.sets)
        timesteps = np.arange(limit)
        old_sets, new_sets = self.set_of(timesteps), new.set_of(timesteps)
        sources = [old_sets[new_sets == s].tolist() for s in range(new.sharing.sets)]
        if not all(sources):
            raise ValueError(
                f"Expected a timestep for each weight set, of {limit} timesteps. Received: {changes}"
            )
        # By position, for the layers within a copy of a cell may have names with other numbers.
        arrays = zip(new._arrays(), self._arrays().values(), strict=True)
        new._assign({name: np.stack([_mean(a, s) for s in sources]) for name, a in arrays})
        return new, sources

    @classmethod
    def _arguments_of(cls, layer: keras.Layer) -> dict[str, Any]:
        """The constructor arguments for a layer like that one."""
        # What is not set may be something that only the other class has.
        known = inspect.signature(cls).parameters
        config = {k: v for k, v in layer.get_config().items() if k in known or v is not None}
        del config["name"]  # two layers of one name cannot stand in one model
        return config

    def _build_like(self, layer: keras.Layer) -> None:
        config = layer.get_build_config()
        shape = config["input_shape"] if "input_shape" in config else config["shapes_dict"]["sequences_shape"]
        states = keras.tree.flatten(getattr(layer, "states", None) or [])
        self.build((states[0].shape[0] if states else None, self.timesteps, *shape[2:]))
        for state, other in zip(getattr(self, "states", None) or [], states, strict=True):
            state.assign(other)


def _check_dial(given: dict[str, Any]) -> None:
    known = ["timesteps", *DIAL, "frozen_timesteps"]
    if unknown := {name: value for name, value in given.items() if name not in known}:
        raise TypeError(
            f"Expected arguments that say which timesteps share or train weights: {', '.join(known)}. "
            f"The others stay as they are. Received: {unknown}"
        )


def _mean(stack: np.ndarray, sets: list[int]) -> np.ndarray:
    # In double precision, for NumPy would add up bfloat16 in bfloat16. Exact where all are equal.
    values = stack[sets].astype("float64")
    return (values[0] + (values - values[0]).mean(axis=0)).astype(stack.dtype)
