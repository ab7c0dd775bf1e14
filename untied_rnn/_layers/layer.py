"""The base of all layers: their arguments, their weights, and moves to layers that share them otherwise."""

import inspect
import numbers
import reprlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np

from untied_rnn import _arguments, _documentation
from untied_rnn._types import Constraint, Initializer, Regularizer, Shape
from untied_rnn._weights import checksum, moves
from untied_rnn._weights.sharing import SHARING_ARGUMENTS, Sharing, frozen_sets, sharing_of
from untied_rnn._weights.stacks import WeightStack, WeightStacks


class UntiedLayer(keras.Layer):
    """Base class of all layers whose weights differ between timesteps.

    A subclass supplies `build_weights(step_shape)`, which calls `self.add_timestep_weight` for each of its
    weights, and reads them with `self.stacks.values(length)`.

    Args:
        timesteps: Positive integer, the number `T` of timesteps that there are weights for, or `None` for
            the length of the first input (with `period`: for any length). A shorter sequence uses the
            weights of the first timesteps; a longer one is an error.
        block_size: Positive integer: each run of `block_size` timesteps shares one weight set. With 1 each
            timestep has its own, as without this argument; with `timesteps` the layer is a tied one. The
            last block is shorter where `block_size` does not divide `timesteps`.
        period: Positive integer: timestep `t` uses weight set `t % period`.
        weight_index: List of `timesteps` integers: timestep `t` uses weight set `weight_index[t]`. All sets
            from 0 to the largest must be used.
        frozen_timesteps: List of timesteps whose weights are not trained. They stand in variables of their
            own (`frozen_kernel` beside `kernel`), which no optimizer gets to see.
        **kwargs: Arguments of `keras.Layer`, such as `name` or `dtype`.

    Input shape:
        `(batch, timesteps, input_dim)`.

    Raises:
        TypeError, ValueError: For an argument outside of what is said above; if neither `timesteps`
            nor the time axis of the input is defined when the layer is built; for a sequence longer
            than `timesteps`, or an input, mask or initial state of another shape.
    """

    tied_class: ClassVar[type[keras.Layer]]
    any_rank: ClassVar[bool] = False  # whether a sample at a timestep may have several axes, as an image has
    timesteps: int | None
    block_size: int | None
    period: int | None
    weight_index: list[int] | None
    frozen_timesteps: list[int] | None
    sharing: Sharing  # once the layer is built

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        _documentation.complete(cls, cls.__mro__[1])

    def __init__(self, received: dict[str, Any]):
        """Stores what a subclass received.

        Args:
            received: `locals()` at the start of the constructor: all of its arguments, and in `kwargs` the
                arguments of `keras.Layer`.
        """
        received = {name: value for name, value in received.items() if name not in ("self", "__class__")}
        super().__init__(**received.pop("kwargs", {}))
        self._argument_names = _arguments.store(self, received)
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise ValueError(f"`dtype` must be a floating-point one. Received: dtype={self.compute_dtype}")
        given = {name: received[name] for name in SHARING_ARGUMENTS if received[name] is not None}
        if len(given) > 1:
            raise ValueError(f"Expected at most one of {', '.join(SHARING_ARGUMENTS)}. Received: {given}")
        if self.weight_index is not None:
            if self.timesteps not in (None, len(self.weight_index)):
                raise ValueError(
                    "`weight_index` must hold one integer for each timestep. "
                    f"Received: {len(self.weight_index)} integers, timesteps={self.timesteps}"
                )
            self.timesteps = len(self.weight_index)
        self.supports_masking = True
        self.input_spec = keras.InputSpec(min_ndim=3) if self.any_rank else keras.InputSpec(ndim=3)
        self.stacks = WeightStacks()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **_arguments.config(self, self._argument_names)}

    def __repr__(self) -> str:
        """Keras's, and between name and `built` what there are weights for. Long lists are cut short."""
        facts = {name: getattr(self, name, None) for name in ("units", "timesteps", *SHARING_ARGUMENTS)}
        sharing = getattr(self, "sharing", None)
        if sharing and sharing.sets not in (self.timesteps, self.period):
            facts["weight_sets"] = sharing.sets
        facts["frozen_timesteps"] = getattr(self, "frozen_timesteps", None)
        shown = "".join(
            f", {name}={reprlib.repr(list(fact)) if isinstance(fact, list) else fact}"
            for name, fact in facts.items()
            if fact
        )
        return f"<{type(self).__name__} name={self.name}{shown}, built={self.built}>"

    # Building.

    def build(self, input_shape: Shape) -> None:
        _, length, *step_shape = self.checked_shape(input_shape)
        name = type(self).__name__
        if None in step_shape:
            raise ValueError(
                f"{name} needs an input whose axes after the timesteps are defined. "
                f"Received: input shape {tuple(input_shape)}"
            )
        timesteps = length if self.timesteps is None and self.period is None else self.timesteps
        if timesteps is None and self.period is None:
            raise ValueError(
                f"{name} has separate weights for every timestep and must know how many. "
                "Give `timesteps`, or an input with a defined time axis. "
                f"Received: timesteps=None, input shape {tuple(input_shape)}"
            )
        sharing = sharing_of(timesteps, self.block_size, self.period, self.weight_index)
        self._frozen_sets = frozen_sets(sharing, timesteps or sharing.sets, self.frozen_timesteps or [])
        self.timesteps, self.sharing = timesteps, sharing
        axes = {2 + axis: size for axis, size in enumerate(step_shape)}
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes=axes)
        self.build_weights(tuple(size for size in step_shape if size is not None))

    def build_weights(self, step_shape: tuple[int, ...]) -> None:
        """Adds the weights, with `self.add_timestep_weight`.

        Args:
            step_shape: The shape of one sample at one timestep, `(input_dim,)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `build_weights`.")

    def add_timestep_weight(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: Initializer,
        regularizer: Regularizer | None = None,
        constraint: Constraint | None = None,
        trainable: bool = True,
    ) -> keras.Variable:
        """Adds the variable `name`: one weight of shape `shape` for each weight set, stacked."""
        options = (initializer, regularizer, constraint, trainable)
        stack = WeightStack(self, name, shape, self.sharing, self._frozen_sets, *options)
        self.stacks.add(stack)
        return stack.variables[0]

    def options_of(self, role: str) -> tuple[Initializer, Regularizer | None, Constraint | None]:
        """The initializer, regularizer and constraint that the layer was given for a role, as `"kernel"`."""
        return (
            getattr(self, f"{role}_initializer"),
            getattr(self, f"{role}_regularizer"),
            getattr(self, f"{role}_constraint"),
        )

    def checked_shape(self, shape: Shape) -> Shape:
        """The shape of an input, if the layer can process it."""
        if not (len(shape) == 3 or (self.any_rank and len(shape) > 3)) or shape[1] == 0:
            raise ValueError(
                f"{type(self).__name__} expected an input of shape (batch, timesteps, input_dim) with at "
                f"least one timestep. Received: input shape {tuple(shape)}"
            )
        length = shape[1]
        if length is not None and self.timesteps is not None and length > self.timesteps:
            raise ValueError(
                f"{type(self).__name__} has weights for {self.timesteps} timesteps, and cannot process "
                f"a sequence of {length}. Expected a sequence of at most {self.timesteps} timesteps."
            )
        return shape

    def check_built(self) -> None:
        """Raises an error if there are no weights yet."""
        if not self.built:
            raise ValueError(
                "Expected a built layer: call `build`, or the layer on data. "
                f"Received: {self!r}, which has no weights yet."
            )

    # Weights.

    def weights_at(self, timestep: int) -> dict[str, np.ndarray]:
        """The weights that one timestep uses, by name."""
        self.check_built()
        if isinstance(timestep, bool) or not isinstance(timestep, numbers.Integral):
            raise TypeError(f"Expected a timestep, an integer. Received: {timestep!r}")
        if not 0 <= timestep < (self.timesteps or np.inf):
            raise ValueError(f"Expected one of {self.timesteps} timesteps, from 0. Received: {timestep}")
        return {name: weights[0] for name, weights in self.stacks.along_time(np.array([timestep])).items()}

    def set_of(self, timesteps: np.ndarray) -> np.ndarray:
        """The numbers of the weight sets that timesteps use."""
        self.check_built()
        return self.sharing.index(timesteps)

    def save_own_variables(self, store: Any) -> None:
        arrays: dict[str, Any] = {}
        if self.stacks.has_frozen:
            arrays = self.stacks.to_file()
        else:
            super().save_own_variables(arrays)
        for key, value in arrays.items():
            store[key] = value
        store[checksum.KEY] = checksum.checksum(arrays)

    def load_own_variables(self, store: Any) -> None:
        arrays = checksum.verified(store, self.name)
        if not self.stacks.has_frozen:
            super().load_own_variables(arrays)
            return
        expected = {key: array.shape for key, array in self.stacks.to_file().items()}
        received = {key: tuple(array.shape) for key, array in arrays.items()}
        if received != expected:
            raise ValueError(
                f"Layer '{self.name}' expected weights of shapes {expected}. Received: shapes {received}"
            )
        self.stacks.from_file(arrays)

    # Moves, each of which returns a new, built layer and leaves this one as it is.

    @classmethod
    def from_tied(cls, layer: keras.Layer, timesteps: int | None = None, **sharing: Any) -> Self:
        """An untied layer that computes what a tied one does: its weights, repeated.

        Args:
            layer: A built layer of Keras's class.
            timesteps: Number of timesteps: the length of the longest sequence to process.
            **sharing: `block_size`, `period` or `weight_index`, if timesteps are to share weights, and
                `frozen_timesteps`.

        Returns:
            A built layer with the same configuration and outputs. Its regularizers, like its weights,
            count once per weight set.

        Raises:
            TypeError: If `layer` is of another class, or for another argument.
            ValueError: If `layer` is not built.
        """
        return moves.from_tied(cls, layer, timesteps, sharing)

    def untie(self, timesteps: int | None = None) -> Self:
        """A layer with a weight set for every timestep, that computes the same.

        Args:
            timesteps: Number of timesteps. Needed where the layer has no limit (with `period`).
        """
        return self.refine(**({} if timesteps is None else {"timesteps": timesteps}))

    def refine(self, **sharing: Any) -> Self:
        """A layer with more weight sets, that computes the same.

        Args:
            **sharing: `block_size`, `period` or `weight_index` of the new layer, and `timesteps` if that
                changes.

        Raises:
            ValueError: If timesteps that have different weights would have to share them.
        """
        return moves.refine(self, sharing)

    def averaged(self, **sharing: Any) -> Self:
        """A layer with fewer weight sets, each the mean over its timesteps of the weights they used.

        Args:
            **sharing: As in `refine`. One set for all timesteps if none of the three is given. Nothing is
                frozen, unless `frozen_timesteps` says so.
        """
        return moves.averaged(self, sharing)

    def freeze(self, timesteps: Sequence[int]) -> Self:
        """A layer that computes the same and does not train the weights of these timesteps.

        Args:
            timesteps: Timesteps from 0. All others are trained, even if they were frozen before.
        """
        return moves.frozen(self, _arguments.check("frozen_timesteps", timesteps))

    @classmethod
    def arguments_of(cls, layer: keras.Layer) -> dict[str, Any]:
        """The constructor arguments for a layer like that one, which may be a tied one."""
        # What is not set may be something that only the other class has.
        known = inspect.signature(cls).parameters
        config = {k: v for k, v in layer.get_config().items() if k in known or v is not None}
        del config["name"]  # two layers of one name cannot stand in one model
        return config
