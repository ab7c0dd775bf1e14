"""The base of all layers: their arguments, their weights, and moves to layers that share them otherwise."""

import contextlib
import inspect
import numbers
import operator
import reprlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops

from untied_rnn import _arguments, _documentation
from untied_rnn._types import Constraint, Initializer, Regularizer, Shape
from untied_rnn._weights import checksum, moves
from untied_rnn._weights.weights import Weight, Weights
from untied_rnn.sharing import Sharing, Untied


class UntiedLayer(keras.Layer):
    """Base class of all layers whose weights differ between timesteps.

    A subclass supplies `build_weights(step_shape)`, which calls `self.add_timestep_weight` for each of its
    weights, and reads them with `self.timestep_weights.values(length)`.

    Args:
        timesteps: Positive integer, the number `T` of timesteps that there are weights for, or `None` for
            the length of the first input (or any length, where `sharing` allows it). A shorter sequence uses
            the weights of the first timesteps; a longer one is an error.
        sharing: How the weights of timesteps are related, from `untied_rnn.sharing`: `Untied()`, the default;
            `Tied()`, `Blocks(size)`, `Periodic(period)` or `Listed(index)`, where timesteps share whole
            weights; `LowRank(rank)` or `Basis(size)`, where they differ by few parameters. With `Tied` and
            `Periodic` no `timesteps` are needed.
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
    # Whether `sharing` may be a dictionary by names of weights, as where a cell decides which there are.
    has_named_weights: ClassVar[bool] = False
    timesteps: int | None
    sharing: Sharing | dict[str, Sharing]
    frozen_timesteps: list[int] | None

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
        if self.sharing is None:
            self.sharing = Untied()
        if isinstance(self.sharing, dict) and not self.has_named_weights:
            raise TypeError(
                "Expected one sharing; `kernel_sharing` and the like are for some of the weights. "
                f"Received: sharing={self.sharing}"
            )
        made_for = {sharing.timesteps for sharing in self._sharings() if sharing.timesteps is not None}
        if made_for and len(made_for | {self.timesteps or max(made_for)}) > 1:
            raise ValueError(
                "Expected sharings for one number of timesteps, such as `Listed` with one integer for each. "
                f"Received: sharings for {sorted(made_for)} timesteps, timesteps={self.timesteps}"
            )
        self.timesteps = self.timesteps or max(made_for, default=None)
        self.supports_masking = True
        self.input_spec = keras.InputSpec(min_ndim=3) if self.any_rank else keras.InputSpec(ndim=3)
        self.timestep_weights = Weights()

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **_arguments.config(self, self._argument_names)}

    def __repr__(self) -> str:
        """Keras's, and between name and `built` what there are weights for. Long lists are cut short."""
        facts = {name: getattr(self, name, None) for name in ("units", "timesteps")}
        facts |= {
            name: value
            for name in self.sharing_arguments()
            if (value := getattr(self, name, None)) != Untied()
        }
        counts = {stack.sets.count for stack in self.timestep_weights.stacks} if self.built else set()
        if counts not in (set(), {self.timesteps}):
            facts["weight_sets"] = max(counts)
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
        any_length = all(sharing.any_length for sharing in self._sharings())
        timesteps = length if self.timesteps is None and not any_length else self.timesteps
        if timesteps is None and not any_length:
            raise ValueError(
                f"{name} has separate weights for every timestep and must know how many. "
                "Give `timesteps`, or an input with a defined time axis. "
                f"Received: timesteps=None, input shape {tuple(input_shape)}"
            )
        self.timesteps = timesteps
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
        sharing: Sharing | None = None,
        trainable: bool = True,
    ) -> Weight:
        """Adds the weight `name`, of shape `shape` at each timestep."""
        weight = Weight(
            self,
            name,
            shape,
            sharing or self.sharing_of(name),
            self.timesteps,
            self.frozen_timesteps or [],
            initializer,
            regularizer,
            constraint,
            trainable,
        )
        self.timestep_weights.add(weight)
        return weight.variables[0]

    def sharing_of(self, name: str) -> Sharing:
        """The sharing of a weight that has none of its own."""
        assert isinstance(self.sharing, Sharing)
        return self.sharing

    def options_of(self, role: str) -> tuple[Initializer, Regularizer | None, Constraint | None, Sharing]:
        """The initializer, regularizer, constraint and sharing of a role, as `"kernel"`."""
        return (
            getattr(self, f"{role}_initializer"),
            getattr(self, f"{role}_regularizer"),
            getattr(self, f"{role}_constraint"),
            getattr(self, f"{role}_sharing") or self.sharing_of(role),
        )

    @classmethod
    def sharing_arguments(cls) -> list[str]:
        """The names of the arguments that say how timesteps share weights."""
        return [name for name in inspect.signature(cls).parameters if name.endswith("sharing")]

    def _sharings(self) -> list[Sharing]:
        """The sharings of all weights."""
        roles = [getattr(self, name) for name in self.sharing_arguments() if name != "sharing"]
        used = [role or self.sharing for role in roles] or [self.sharing]
        # What a dictionary does not name is untied.
        return [s for one in used for s in ([*one.values(), Untied()] if isinstance(one, dict) else [one])]

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

    def checked_start(self, start: Any, shape: Shape) -> Any:
        """The timestep that sequences begin at: an integer; or a tensor, if there are weights for any length.

        A tensor counts from the last time that the weights began anew.
        """
        if self.timesteps is None:
            start = ops.convert_to_tensor(start)
            _check_starts(start, shape[0])
            return ops.cast(start, "int32") % self.timestep_weights.cycle
        start = self._known_start(start)
        if not 0 <= start <= self.timesteps - (shape[1] or 1):
            raise ValueError(
                f"Expected a sequence that ends within the {self.timesteps} timesteps that there are weights "
                f"for. Received: start={start}, for {shape[1]} timesteps"
            )
        return start

    def _known_start(self, start: Any) -> int:
        """Of a layer with `timesteps`. Keras makes tensors of NumPy's integers."""
        with contextlib.suppress(TypeError):
            if "bool" not in str(getattr(start, "dtype", type(start))):  # torch's have an index
                return operator.index(start)
        raise TypeError(
            f"Expected an integer as `start` of a layer with weights for {self.timesteps} timesteps. "
            "Tensors in a graph, and a start for each sample, are for layers with weights for any number "
            f"of timesteps, as with `Periodic`. Received: start={start!r}"
        )

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        # Keras asks for this where a model is made. `call`, which checks every start, runs in `fit` only.
        start = kwargs.get("start")
        if keras.backend.is_keras_tensor(start):
            if self.timesteps is None:
                _check_starts(start, None)
            else:
                self._known_start(start)
        return super().compute_output_spec(*args, **kwargs)

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
        along_time = self.timestep_weights.along_time(np.array([timestep]))
        return {name: weights[0] for name, weights in along_time.items()}

    def save_own_variables(self, store: Any) -> None:
        arrays = self._own_arrays()
        for key, value in arrays.items():
            store[key] = value
        store[checksum.KEY] = checksum.checksum(arrays)

    def load_own_variables(self, store: Any) -> None:
        arrays = checksum.verified(store, self.name)
        expected = {key: tuple(array.shape) for key, array in self._own_arrays().items()}
        received = {key: tuple(array.shape) for key, array in arrays.items()}
        # Before anything is assigned: Keras would find out in the middle.
        if self.built and received != expected:
            raise ValueError(
                f"Layer '{self.name}' expected weights of shapes {expected}. Received: shapes {received}. "
                "Make the layer with the arguments of the one that was saved, `timesteps` and `sharing` "
                "included."
            )
        if self.timestep_weights.has_frozen:
            self.timestep_weights.from_file(arrays)
        else:
            super().load_own_variables(arrays)

    def _own_arrays(self) -> dict[str, Any]:
        """What a file holds, by Keras's keys: frozen or not, the same."""
        if self.timestep_weights.has_frozen:
            return self.timestep_weights.to_file()
        arrays: dict[str, Any] = {}
        super().save_own_variables(arrays)
        return arrays

    # Moves, each of which returns a new, built layer and leaves this one as it is.

    @classmethod
    def from_tied(cls, layer: keras.Layer, timesteps: int | None = None, **sharing: Any) -> Self:
        """An untied layer that computes what a tied one does: its weights, at all timesteps.

        Args:
            layer: A built layer of Keras's class.
            timesteps: Number of timesteps: the length of the longest sequence to process.
            **sharing: `sharing` and the like, and `frozen_timesteps`.

        Returns:
            A built layer with the same configuration and outputs. Its regularizers, like its weights,
            count once per weight set.

        Raises:
            TypeError: If `layer` is of another class, or for another argument.
            ValueError: If `layer` is not built.
        """
        return moves.from_tied(cls, layer, timesteps, sharing)

    def untie(self, timesteps: int | None = None) -> Self:
        """A layer with weights of its own for every timestep, that computes the same.

        Args:
            timesteps: Number of timesteps. Needed where the layer takes any.
        """
        return self.refine(sharing="untied", **({} if timesteps is None else {"timesteps": timesteps}))

    def refine(self, **sharing: Any) -> Self:
        """A layer with another sharing, that computes the same.

        Args:
            **sharing: `sharing`, for all weights, or `kernel_sharing` and the like of the new layer, and
                `timesteps` if that changes.

        Raises:
            ValueError: If the weights of some timestep would change.
        """
        return moves.refine(self, sharing)

    def averaged(self, **sharing: Any) -> Self:
        """A layer with another sharing, whose weights are as close as they can be to this layer's.

        Where timesteps come to share a weight, it is the mean of theirs.

        Args:
            **sharing: As in `refine`. `sharing="tied"` if none is given. Nothing is frozen, unless
                `frozen_timesteps` says so.
        """
        return moves.averaged(self, sharing)

    def compress(self, rank: int) -> tuple[Self, dict[str, float]]:
        """A layer whose weights are one for all timesteps, plus deviations of low rank.

        ```
        W_t ~ W + A_t B_t      with the mean W, and A_t B_t nearest to W_t - W
        ```

        Args:
            rank: Integer from 0.

        Returns:
            The layer, with `sharing=LowRank(rank)`, and by the names of the weights the error
            `sqrt(sum_t |change of W_t|^2 / sum_t |W_t|^2)`. It is 0 (but for rounding) at full rank.
        """
        return moves.compress(self, rank)

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


def _check_starts(start: Any, batch_size: int | None) -> None:
    """`start` is a tensor."""
    if not keras.backend.standardize_dtype(start.dtype).startswith(("int", "uint")):
        raise TypeError(f"Expected integers as `start`. Received: start={start!r}")
    known = [size for size in (*start.shape, batch_size) if size is not None]
    if len(start.shape) > 1 or (len(start.shape) == 1 and len(set(known)) > 1):
        raise ValueError(
            "Expected one `start` for all samples, or one for each, of shape (batch,). "
            f"Received: shape {tuple(start.shape)}, for a batch of {batch_size}"
        )
