"""What all layers with weights per timestep have in common: the stacked weights, and who shares them."""

import numbers
import reprlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from untied_rnn import arguments, checksum, documentation
from untied_rnn.sharing import Sharing, blocks, listed, periodic, untied
from untied_rnn.timestep_weights import StackRegularizer, add_timestep_weight, timestep_penalty

Tensor = Any
Shape = tuple[int | None, ...]

# The arguments that say how timesteps share weights, of which at most one is given.
DIAL = ("block_size", "period", "weight_index")


class UntiedLayer(keras.Layer):
    """Base class of all layers whose weights differ between timesteps.

    A subclass supplies `build_weights(step_shape)`, which calls `self.add_timestep_weight` for each of its
    weights, and reads them with `self.stacks(length)`.

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

    any_rank: ClassVar[bool] = False  # whether a sample at a timestep may have several axes, as an image has
    timesteps: int | None
    block_size: int | None
    period: int | None
    weight_index: list[int] | None
    frozen_timesteps: list[int] | None
    sharing: Sharing  # once the layer is built; of the stacks that `stacks` returns

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        documentation.complete(cls, cls.__mro__[1])

    def __init__(self, received: dict[str, Any]):
        """Stores what a subclass received.

        Args:
            received: `locals()` at the start of the constructor: all of its arguments, and in `kwargs` the
                arguments of `keras.Layer`.
        """
        received = {name: value for name, value in received.items() if name not in ("self", "__class__")}
        super().__init__(**received.pop("kwargs", {}))
        self._argument_names = arguments.store(self, received)
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise ValueError(f"`dtype` must be a floating-point one. Received: dtype={self.compute_dtype}")
        given = {name: received[name] for name in DIAL if received[name] is not None}
        if len(given) > 1:
            raise ValueError(f"Expected at most one of {', '.join(DIAL)}. Received: {given}")
        if self.weight_index is not None:
            if self.timesteps not in (None, len(self.weight_index)):
                raise ValueError(
                    "`weight_index` must hold one integer for each timestep. "
                    f"Received: {len(self.weight_index)} integers, timesteps={self.timesteps}"
                )
            self.timesteps = len(self.weight_index)
        self.supports_masking = True
        self.input_spec = keras.InputSpec(min_ndim=3) if self.any_rank else keras.InputSpec(ndim=3)
        # By name, the variables of the trained and of the frozen weight sets. In a namespace, for
        # Keras itself to keep account of them only once.
        self._stacked = SimpleNamespace(parts={})
        # The weight sets in the order of the stacks, trained sets first, and the number of trained sets.
        self._order, self._trained = np.arange(0), 0

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **arguments.config(self, self._argument_names)}

    def __repr__(self) -> str:
        """Keras's, and between name and `built` what there are weights for. Long lists are cut short."""
        facts = {name: getattr(self, name, None) for name in ("units", "timesteps", *DIAL)}
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

    # Weights.

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
        initializer: Callable[..., Tensor],
        regularizer: Callable[[Tensor], Tensor] | None = None,
        constraint: Callable[[Tensor], Tensor] | None = None,
        trainable: bool = True,
    ) -> keras.Variable:
        """Adds the variable `name`: one weight of shape `shape` for each weight set, stacked."""
        frozen = self._order[self._trained :]
        rest = [
            add_timestep_weight(self, f"frozen_{name}", sets, shape, initializer, trainable=False)
            for sets in ([frozen] if len(frozen) else [])
        ]
        penalty = regularizer and timestep_penalty(regularizer, cyclic=self.period is not None)
        weight = add_timestep_weight(
            self,
            name,
            self._order[: self._trained],
            shape,
            initializer,
            # All sets count, though some are frozen: their neighbours in time are to be like them.
            penalty and StackRegularizer(penalty, lambda trained: self._in_order([trained, *rest])),
            constraint,
            trainable,
        )
        self._stacked.parts[name] = [weight, *rest]
        return weight

    def _in_order(self, parts: list[Tensor]) -> Tensor:
        """The stack of all sets in their order, from the trained ones and the frozen ones."""
        return ops.take(ops.concatenate(parts), np.argsort(self._order), axis=0) if parts[1:] else parts[0]

    def stacks(self, length: Any) -> dict[str, Tensor]:
        """The stacked weights by name, as `sharing` numbers their sets, for sequences of that length.

        In the dtype of the variables, in which gradients of shared weights are added up.
        """
        # `cast` reads the variable; `convert_to_tensor` would hand TensorFlow the variable itself.
        stacks = {}
        for name, parts in self._stacked.parts.items():
            values = [ops.cast(part, part.dtype) for part in parts]
            stacks[name] = ops.concatenate(values) if values[1:] else values[0]
        if not self.sharing.separate or (isinstance(length, int) and length == self.timesteps):
            return stacks
        # `slice`, since `[:length]` would clip a length that is known only when the graph runs, and
        # one weight set could then be broadcast over a longer sequence.
        return {
            name: ops.slice(stack, [0] * stack.ndim, (length, *stack.shape[1:]))
            for name, stack in stacks.items()
        }

    def weights_at(self, timestep: int) -> dict[str, np.ndarray]:
        """The weights that one timestep uses, by name."""
        self._check_built()
        if isinstance(timestep, bool) or not isinstance(timestep, numbers.Integral):
            raise TypeError(f"Expected a timestep, an integer. Received: {timestep!r}")
        if not 0 <= timestep < (self.timesteps or np.inf):
            raise ValueError(f"Expected one of {self.timesteps} timesteps, from 0. Received: {timestep}")
        s = self.set_of(np.array([timestep]))[0]
        return {name: stack[s] for name, stack in self._arrays().items()}

    def set_of(self, timesteps: np.ndarray) -> np.ndarray:
        """The numbers of the weight sets that timesteps use."""
        self._check_built()
        return self._order[self.sharing.index(timesteps)]

    def _check_built(self) -> None:
        if not self.built:
            raise ValueError(
                "Expected a built layer: call `build`, or the layer on data. "
                f"Received: {self!r}, which has no weights yet."
            )

    def _arrays(self) -> dict[str, np.ndarray]:
        """The stacked weights by name, all sets in their order."""
        order = np.argsort(self._order)
        return {
            name: np.concatenate([ops.convert_to_numpy(part) for part in parts])[order]
            for name, parts in self._stacked.parts.items()
        }

    def _assign(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets all weights to stacks by name, as `arrays` returns them."""
        for name, array in arrays.items():
            # `asarray` because Keras 3.10 hands on the datasets of a file, which take no such index.
            parts = np.split(np.asarray(array)[self._order], [self._trained])
            for variable, part in zip(self._stacked.parts[name], parts):  # noqa: B905 (the second may be empty)
                variable.assign(part)

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
        sharing = self._sharing(timesteps)
        frozen = self._frozen_sets(sharing, timesteps or sharing.sets)
        trained = [s for s in range(sharing.sets) if s not in frozen]
        self._order, self._trained = np.array([*trained, *frozen]), len(trained)
        self.timesteps = timesteps
        self.sharing = sharing.reordered(np.argsort(self._order)) if frozen else sharing
        axes = {2 + axis: size for axis, size in enumerate(step_shape)}
        self.input_spec = keras.InputSpec(ndim=len(input_shape), axes=axes)
        self.build_weights(tuple(size for size in step_shape if size is not None))

    def _sharing(self, timesteps: int | None) -> Sharing:
        if self.period is not None:
            return periodic(self.period)
        if self.weight_index is not None:
            return listed(self.weight_index)
        assert timesteps is not None
        return untied(timesteps) if self.block_size in (None, 1) else blocks(self.block_size, timesteps)

    def _frozen_sets(self, sharing: Sharing, timesteps: int) -> list[int]:
        frozen = self.frozen_timesteps or []
        received = f"Received: frozen_timesteps={frozen}, with weights for {timesteps} timesteps"
        if any(t >= timesteps for t in frozen):
            raise ValueError(f"Expected `frozen_timesteps` from 0 to {timesteps - 1}. {received}")
        trained = {int(sharing.index(t)) for t in range(timesteps) if t not in frozen}
        sets = {int(sharing.index(t)) for t in frozen}
        if frozen and not trained:
            raise ValueError(
                f"Expected some timesteps to be trained (`trainable=False` freezes a layer). {received}"
            )
        if sets & trained:
            raise ValueError(
                f"Expected timesteps that share weights to be frozen together. {received}, of which "
                f"{[t for t in frozen if int(sharing.index(t)) in trained]} share theirs with trained ones"
            )
        return sorted(sets)

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

    # Files, in which nothing is frozen: so they are the same, whichever timesteps are.

    def save_own_variables(self, store: Any) -> None:
        arrays: dict[str, Any] = {}
        if self._trained < len(self._order):
            arrays = self._file_arrays()
        else:
            super().save_own_variables(arrays)
        for key, value in arrays.items():
            store[key] = value
        store[checksum.KEY] = checksum.checksum(arrays)

    def load_own_variables(self, store: Any) -> None:
        arrays = checksum.verified(store, self.name)
        if self._trained == len(self._order):
            super().load_own_variables(arrays)
            return
        expected = {key: array.shape for key, array in self._file_arrays().items()}
        received = {key: tuple(array.shape) for key, array in arrays.items()}
        if received != expected:
            raise ValueError(
                f"Layer '{self.name}' expected weights of shapes {expected}. Received: shapes {received}"
            )
        self._assign({name: arrays[str(i)] for i, name in enumerate(self._file_order())})

    def _file_order(self) -> list[str]:
        """The names of the weights as Keras orders them in files: constants of a cell come last."""
        trained = {id(variable) for variable in self._trainable_variables}
        return sorted(self._stacked.parts, key=lambda name: id(self._stacked.parts[name][0]) not in trained)

    def _file_arrays(self) -> dict[str, np.ndarray]:
        arrays = self._arrays()
        return {str(i): arrays[name] for i, name in enumerate(self._file_order())}
