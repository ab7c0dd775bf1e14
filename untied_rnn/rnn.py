"""The base layer: Keras's contract for recurrent layers, written once for the whole family."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from untied_rnn import arguments, checksum
from untied_rnn.compilation import compiled, fastest_form
from untied_rnn.recurrence import hold
from untied_rnn.scan import Shape
from untied_rnn.timestep_weights import add_timestep_weight

Tensor = Any


class BaseUntiedRNN(keras.Layer):
    """Base class of recurrent layers with separate weights for every timestep.

    It owns what all of them share: the number of timesteps, the stacked weights, masks, states,
    direction, output forms, compilation and configuration. A subclass sets `state_size` (a list of
    integers) and `output_size` in its constructor and supplies

    - `build_weights(input_dim)`, which calls `self.add_timestep_weight` for each of its weights, and
    - `recurrence(inputs, states, mask, weights, noise, unroll)`, a pure function of time-major tensors.

    Args:
        timesteps: Number of weight sets, or `None` for the length of the first input.
        return_sequences, return_state, go_backwards, stateful, unroll, zero_output_for_mask: See
            `untied_rnn.UntiedSimpleRNN`.
        jit_compile: See `untied_rnn.UntiedSimpleRNN`.
        **kwargs: Arguments of `keras.Layer`.
    """

    state_size: list[int]
    output_size: int
    timesteps: int  # `None` until the layer is built, where it is not given

    def __init__(
        self,
        timesteps: int | None,
        return_sequences: bool,
        return_state: bool,
        go_backwards: bool,
        stateful: bool,
        unroll: bool | int | str,
        zero_output_for_mask: bool,
        jit_compile: bool | str,
        **kwargs: Any,
    ):
        received = dict(locals())
        super().__init__(**kwargs)
        arguments.store(self, BaseUntiedRNN.__init__, received)
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise ValueError(f"`dtype` must be a floating-point one. Received: dtype={self.compute_dtype}")
        self.supports_masking = True
        self.input_spec = keras.InputSpec(ndim=3)
        self._weight_names: list[str] = []
        # In a namespace so that Keras does not take the states for weights: another batch size would
        # then make files and `set_weights` fail.
        self._carried = SimpleNamespace(states=None)
        self._run = compiled(self._sequence, self.jit_compile)

    # What a subclass supplies.

    def build_weights(self, input_dim: int) -> None:
        """Adds the weights, with `self.add_timestep_weight`."""
        raise NotImplementedError(f"{type(self).__name__} must define `build_weights`.")

    def recurrence(
        self,
        inputs: Tensor,
        states: list[Tensor],
        mask: Tensor | None,
        weights: dict[str, Tensor],
        noise: dict[str, Tensor],
        unroll: bool | int,
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs all timesteps.

        Args:
            inputs: `(timesteps, batch, input_dim)`, in the order of processing.
            states: Initial states, `(batch, state_size[i])`.
            mask: Boolean, `(timesteps, batch, 1)`, or `None`. A masked step keeps the states.
            weights: Stacked weights by name, `(timesteps, ...)`.
            noise: What `self.noise` returned.
            unroll: See `untied_rnn.scan.scan`.

        Returns:
            Outputs `(timesteps, batch, output_size)`, or the last of them as
            `(1, batch, output_size)` if nothing else is asked for, and the last states.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `recurrence`.")

    def noise(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Tensor]:
        """Random tensors for one call, drawn outside of what is compiled."""
        return {}

    # Weights.

    def add_timestep_weight(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: Callable[..., Tensor],
        regularizer: Callable[[Tensor], Tensor] | None = None,
        constraint: Callable[[Tensor], Tensor] | None = None,
    ) -> keras.Variable:
        """Adds the variable `name`: one weight of shape `shape` for every timestep, stacked."""
        weight = add_timestep_weight(self, name, self.timesteps, shape, initializer, regularizer, constraint)
        self._weight_names.append(name)
        return weight

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        batch_size, length, input_dim = self._checked(sequences_shape, initial_state_shape)
        if input_dim is None:
            raise ValueError(
                f"{type(self).__name__} needs a defined last axis of its input. "
                f"Received: input shape {tuple(sequences_shape)}"
            )
        if self.timesteps is None and length is None:
            raise ValueError(
                f"{type(self).__name__} has separate weights for every timestep and must know how many. "
                "Give `timesteps`, or an input with a defined time axis. "
                f"Received: timesteps=None, input shape {tuple(sequences_shape)}"
            )
        if self.stateful and batch_size is None:
            raise ValueError(
                f"A stateful {type(self).__name__} needs a defined batch size. "
                "Give `batch_size` or `batch_shape` to `keras.Input`. "
                f"Received: input shape {tuple(sequences_shape)}"
            )
        if self.timesteps is None and length is not None:
            self.timesteps = length
        self.input_spec = keras.InputSpec(ndim=3, axes={2: input_dim})
        self.build_weights(input_dim)
        if self.stateful and batch_size is not None:
            self._create_states(batch_size)

    def _checked(self, shape: Shape, initial_state_shape: Any = None) -> Shape:
        """The shape of an input, if the layer can process it, from an initial state of that shape."""
        if len(shape) != 3 or shape[1] == 0:
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
        if initial_state_shape is not None:
            expected = [(shape[0], size) for size in self.state_size]
            single = all(size is None or isinstance(size, int) for size in initial_state_shape)
            received = [tuple(state) for state in ([initial_state_shape] if single else initial_state_shape)]
            if len(expected) != len(received) or not all(map(_compatible, expected, received)):
                raise ValueError(
                    f"{type(self).__name__} expected initial states of shapes {expected} for a batch of "
                    f"{shape[0]}. Received: shapes {received}"
                )
        return shape

    def _check_unroll(self, length: int | None) -> None:
        if self.unroll is True and length is None:
            raise ValueError(
                f"{type(self).__name__} cannot be unrolled over an undefined number of timesteps. Expected "
                "an input with a defined time axis. Received: unroll=True, and a time axis of None"
            )

    def _weights_for(self, sequences: Tensor) -> dict[str, Tensor]:
        """The first weight sets, as many as there are timesteps to process."""
        length = ops.shape(sequences)[1]
        # `cast` reads the variable; `convert_to_tensor` would hand TensorFlow the variable itself.
        weights = {name: ops.cast(getattr(self, name), self.compute_dtype) for name in self._weight_names}
        if isinstance(length, int) and length == self.timesteps:
            return weights
        # `slice`, since `[:length]` would clip a length that is known only when the graph runs, and
        # one weight set could then be broadcast over a longer sequence.
        return {
            name: ops.slice(weight, [0] * weight.ndim, (length, *weight.shape[1:]))
            for name, weight in weights.items()
        }

    def save_own_variables(self, store: Any) -> None:
        arrays: dict[str, Any] = {}
        super().save_own_variables(arrays)
        for key, value in arrays.items():
            store[key] = value
        store[checksum.KEY] = checksum.checksum(arrays)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(checksum.verified(store, self.name))

    # States.

    @property
    def states(self) -> list[keras.Variable] | None:
        """The variables that carry the states of a `stateful` layer from one batch to the next."""
        return self._carried.states

    @property
    def variables(self) -> list[keras.Variable]:
        # Part of `variables` but not of `weights`, like Keras's random seeds: a backend that trains
        # without side effects (JAX) must be told of them, a file must not hold them.
        return super().variables + (self.states or [])

    def _create_states(self, batch_size: int) -> None:
        self._carried.states = [
            keras.Variable(
                ops.zeros((batch_size, size)), trainable=False, dtype=self.variable_dtype, name="rnn_state"
            )
            for size in self.state_size
        ]

    def get_initial_state(self, batch_size: Any) -> list[Tensor]:
        """Zeros for every state, `(batch_size, state_size)`."""
        return [ops.zeros((batch_size, size), dtype=self.compute_dtype) for size in self.state_size]

    def reset_state(self) -> None:
        """Sets the states of a `stateful` layer back to zero."""
        for state in self.states or []:
            state.assign(ops.zeros(state.shape, state.dtype))

    def reset_states(self) -> None:
        """Alias of `reset_state`, as in Keras."""
        self.reset_state()

    def _initial_states(self, sequences: Tensor, initial_state: Any) -> list[Tensor]:
        batch_size = ops.shape(sequences)[0]
        if initial_state is None:
            if not self.stateful:
                return self.get_initial_state(batch_size)
            # Copied because torch would else see the tensor change before its backward pass.
            initial_state = [ops.copy(ops.convert_to_tensor(state)) for state in self.states or []]
        states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        states = [ops.convert_to_tensor(state) for state in states]
        self._checked(sequences.shape, [state.shape for state in states])
        return [ops.cast(state, self.compute_dtype) for state in states]

    # The call.

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        sequences_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        _, length, _ = self._checked(sequences.shape)
        self._check_unroll(length)
        # Keras hands the mask of the inputs on as `mask` only if they are the only tensors. Beside an
        # initial state it comes under this name, or padding would be read as data.
        mask = sequences_mask if mask is None else mask
        states = self._initial_states(sequences, initial_state)
        unroll = fastest_form(length) if self.unroll == "auto" else self.unroll
        outputs, states = self._run(
            sequences,
            states,
            self._time_major(mask, sequences),
            self._weights_for(sequences),
            self.noise(sequences, states, training),
            (
                self.return_sequences,
                self.go_backwards,
                self.zero_output_for_mask,
                unroll,
                # Among the options, so that TensorFlow makes a program of its own for each length:
                # one for all lengths cannot be written out.
                length if unroll is True else None,
            ),
        )
        if self.stateful:
            for variable, state in zip(self.states or [], states, strict=True):
                variable.assign(ops.cast(state, variable.dtype))
        return (outputs, *states) if self.return_state else outputs

    @staticmethod
    def _time_major(mask: Tensor | None, sequences: Tensor) -> Tensor | None:
        if mask is None:
            return None
        mask = ops.convert_to_tensor(_first(mask))
        if len(mask.shape) == 2:
            mask = ops.expand_dims(mask, -1)
        expected = (*sequences.shape[:2], 1)
        if not _compatible(expected, tuple(mask.shape)):
            raise ValueError(
                f"Expected a mask of shape {tuple(sequences.shape[:2])}, the batch and time axes of the "
                f"input. Received: mask of shape {tuple(mask.shape)}"
            )
        return ops.transpose(ops.cast(mask, "bool"), (1, 0, 2))

    def _sequence(
        self,
        sequences: Tensor,
        states: list[Tensor],
        mask: Tensor | None,
        weights: dict[str, Tensor],
        noise: dict[str, Tensor],
        options: tuple[bool, bool, bool, bool | int, int | None],
    ) -> tuple[Tensor, list[Tensor]]:
        """The layer as a pure function: batch-major in and out, all of the mathematics in between."""
        return_sequences, go_backwards, zero_output_for_mask, unroll, _ = options
        inputs = ops.transpose(sequences, (1, 0, 2))
        if go_backwards:
            inputs = ops.flip(inputs, 0)
            mask = None if mask is None else ops.flip(mask, 0)
        outputs, states = self.recurrence(inputs, states, mask, weights, noise, unroll)
        if mask is not None:
            outputs = ops.where(mask, outputs, 0) if zero_output_for_mask else hold(outputs, mask, unroll)
        return (ops.transpose(outputs, (1, 0, 2)) if return_sequences else outputs[-1]), states

    # Shapes, masks, configuration.

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> tuple:
        batch_size, length, _ = self._checked(sequences_shape, initial_state_shape)
        self._check_unroll(length)
        output = (
            (batch_size, length, self.output_size)
            if self.return_sequences
            else (batch_size, self.output_size)
        )
        return (output, *((batch_size, size) for size in self.state_size)) if self.return_state else output

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        mask = _first(mask) if self.return_sequences else None
        return [mask] + [None] * len(self.state_size) if self.return_state else mask


def _first(mask: Any) -> Any:
    """The mask of the sequences, which Keras allows to be given in a list."""
    return mask[0] if isinstance(mask, (list, tuple)) else mask


def _compatible(expected: Shape, received: Shape) -> bool:
    return len(expected) == len(received) and all(
        a is None or b is None or a == b for a, b in zip(expected, received, strict=True)
    )
