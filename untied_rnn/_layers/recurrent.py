"""The base layer: Keras's contract for recurrent layers, written once for the whole family."""

from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import keras
from keras import ops

from untied_rnn._layers.layer import UntiedLayer
from untied_rnn._layers.shapes import checked_mask, compatible, first, plain, shapes
from untied_rnn._loops.compilation import Program, WrittenOut, fastest_form
from untied_rnn._loops.phase import first_timestep, laid_out, presence, taken_back
from untied_rnn._loops.recurrence import hold, in_rank_of
from untied_rnn._loops.scan import Made, Stack
from untied_rnn._types import Nested, Shape, Tensor


class Sequences(NamedTuple):
    """What a recurrence processes.

    Attributes:
        inputs: `(timesteps, batch, input_dim)`, in the order of processing.
        states: Initial states, `(batch, size)`, in a flat list.
        mask: Boolean, `(timesteps, batch, 1)`, or `None`. A masked step keeps the states.
        weights: What the weights are made of, by name; see `weights_of`.
        start: The timestep at which they begin; see `VariableStack.sets_from`.
        random: What the layer's `random_tensors` returned.
        unroll: See `scan`.
    """

    inputs: Tensor
    states: list[Tensor]
    mask: Tensor | None
    weights: dict[str, Any]
    start: int | None
    random: dict[str, Any]
    unroll: bool | int


class Options(NamedTuple):
    """What a call is compiled for, beside the shapes of tensors.

    Attributes:
        return_sequences, go_backwards, zero_output_for_mask: The layer's.
        unroll: See `scan`.
        start: The timestep at which sequences begin, as `Sequences` has it.
        length: The number of timesteps if they are written out, so that TensorFlow makes a program of its own
            for each length: one for all lengths cannot be written out.
    """

    return_sequences: bool
    go_backwards: bool
    zero_output_for_mask: bool
    unroll: bool | int
    start: int | None
    length: int | None


class RecurrentLayer(UntiedLayer):
    """Base class of recurrent layers with separate weights for every timestep.

    It owns what all of them share: masks, states, direction, output forms, compilation and configuration. A
    subclass sets `state_size` (integers, in a list that may be nested) and `output_size` in its constructor
    and supplies

    - `build_weights(step_shape)`, which calls `self.add_timestep_weight` for each of its weights, and
    - `recurrence(sequences)`, a pure function of time-major tensors.

    Args:
        return_sequences: Whether to return the outputs of all timesteps or the last one.
        return_state: Whether to return the last states in addition.
        go_backwards: Whether to process the sequence from its end, and return outputs in that
            order. The weights of timestep `t` belong to the `t`-th *processed* step.
        stateful: Whether the last state of sample `i` is the initial state of sample `i` in the
            next batch. With `timesteps`, each batch starts at the first weights; without, as with
            `Periodic`, it continues with the next. Needs a defined batch size.
        unroll: `True` writes all timesteps out, which for few is faster; compilation grows with `T`.
            `False` loops over them. An integer is the number of timesteps that one iteration of
            the loop runs. `"auto"` takes the fastest form for so many timesteps on this machine that
            compiles in a few seconds.
        zero_output_for_mask: Whether the output is zero at masked timesteps, instead of the last
            unmasked output.
        jit_compile: On TensorFlow, whether XLA compiles the layer where it does not compile what is around
            it: in plain calls, custom training loops, and a `fit` that Keras does not compile with XLA, as on
            a CPU. `"auto"` does so on a GPU. Other backends ignore it.

    Call arguments:
        sequences: Tensor of shape `(batch, timesteps, input_dim)`.
        initial_state: States before the first timestep, tensors of shape `(batch, size)` in a list, or one
            tensor. Zeros if not given.
        mask: Boolean tensor of shape `(batch, timesteps)`; `False` marks timesteps to skip.
        training: Whether dropout is active.
        start: The timestep whose weights the sequences begin with, an integer. In a layer for any number of
            timesteps, as with `Periodic`, also a tensor of integers, `()` or one for each sample, `(batch,)`.
            If samples differ, `period - 1` timesteps more are computed. Without it, sequences begin with the
            first weights; in a stateful layer for any number of timesteps, where the last batch ended.

    Output shape:
        `(batch, features)`, or `(batch, timesteps, features)` with `return_sequences`. With `return_state`,
        a tuple of that and the last states.

    Masking:
        A masked timestep keeps the states and repeats the last output (zeros before the first
        unmasked timestep, or at all masked ones with `zero_output_for_mask`). The weights of a
        masked timestep are skipped with it. Masks come from `mask`, `keras.layers.Masking` or
        `keras.layers.Embedding(mask_zero=True)`, and are handed on with `return_sequences`.
    """

    few_timesteps: ClassVar[WrittenOut] = WrittenOut(xla=0, graph=0, eager=0)
    return_sequences: bool
    return_state: bool
    go_backwards: bool
    stateful: bool
    unroll: bool | int | str
    zero_output_for_mask: bool
    jit_compile: bool | str
    state_size: list[Any]
    output_size: int

    def __init__(self, received: dict[str, Any]):
        super().__init__(received)
        # In a namespace so that Keras does not take the states for weights: another batch size would
        # then make files and `set_weights` fail.
        self._carried = SimpleNamespace(states=None, position=None)
        self._program = Program(self._processed, self.jit_compile)

    # What a subclass supplies.

    def recurrence(self, sequences: Sequences) -> tuple[Nested, list[Tensor]]:
        """Processes all timesteps.

        Returns:
            Outputs `(timesteps, batch, output_size)`, or the last of them as
            `(1, batch, output_size)` if nothing else is asked for, and the last states.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `recurrence`.")

    def random_tensors(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Any]:
        """Dropout masks and the like for one call, drawn outside of what is compiled."""
        return {}

    def weight_values(self, length: Any, start: Any = None) -> dict[str, Any]:
        """What the weights are made of, by name, for sequences of so many timesteps that begin at one."""
        return self.timestep_weights.values(length, start)

    def weights_of(self, values: dict[str, Any], start: int | None = None) -> dict[str, Stack | Made]:
        """The weights by name, made of these values, for sequences that begin at a timestep."""
        return {name: self.timestep_weights[name].of(value, start) for name, value in values.items()}

    # Building.

    def build(self, sequences_shape: Shape, initial_state_shape: Any = None) -> None:
        self._check_states(self.checked_shape(sequences_shape), initial_state_shape)
        batch_size = sequences_shape[0]
        if self.stateful and batch_size is None:
            raise ValueError(
                f"A stateful {type(self).__name__} needs a defined batch size. "
                "Give `batch_size` or `batch_shape` to `keras.Input`. "
                f"Received: input shape {tuple(sequences_shape)}"
            )
        super().build(sequences_shape)
        if self.stateful and batch_size is not None:
            self._create_states(batch_size)

    def _check_states(self, shape: Shape, states_shape: Any) -> None:
        if states_shape is None:
            return
        expected = [(shape[0], *state) for state in self.state_shapes]
        received = shapes(states_shape)
        if len(expected) != len(received) or not all(map(compatible, expected, received)):
            raise ValueError(
                f"{type(self).__name__} expected initial states of shapes {expected} for a batch of "
                f"{shape[0]}. Received: shapes {received}"
            )

    def _check_batch_size(self, received: int | None) -> None:
        expected = self.states[0].shape[0] if self.states else received
        if received is not None and received != expected:
            raise ValueError(
                f"The stateful {type(self).__name__} carries on the states of the samples it was built for, "
                f"and expected batch size {expected}. Give every batch that size and leave out a smaller "
                f"last one. Received: batch size {received}"
            )

    def _check_unroll(self, length: int | None) -> None:
        if self.unroll is True and length is None:
            raise ValueError(
                f"{type(self).__name__} cannot be unrolled over an undefined number of timesteps. Expected "
                "an input with a defined time axis. Received: unroll=True, and a time axis of None"
            )

    # States.

    def nested(self, states: list[Tensor]) -> list[Any]:
        """A flat list of states, nested as `state_size` is."""
        return keras.tree.pack_sequence_as(plain(self.state_size), states)

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of all states of one sample, in a flat list."""
        return [(size,) for size in keras.tree.flatten(self.state_size)]

    def step_output_shape(self, prefix: Shape) -> Any:
        """The shape of the output: the axes in `prefix`, then the axes of one sample at one timestep."""
        return (*prefix, self.output_size)

    @property
    def states(self) -> list[keras.Variable] | None:
        """The variables that carry the states of a `stateful` layer from one batch to the next."""
        return self._carried.states

    @property
    def variables(self) -> list[keras.Variable]:
        # Part of `variables` but not of `weights`, like Keras's random seeds: a backend that trains
        # without side effects (JAX) must be told of them, a file must not hold them.
        position = [] if self._carried.position is None else [self._carried.position]
        return super().variables + (self.states or []) + position

    def _create_states(self, batch_size: int) -> None:
        self._carried.states = [
            keras.Variable(state, trainable=False, dtype=self.variable_dtype, name="rnn_state")
            for state in self.get_initial_state(batch_size)
        ]
        if self.timesteps is None and self.timestep_weights.cycle > 1:
            self._carried.position = keras.Variable(0, trainable=False, dtype="int32", name="position")

    def get_initial_state(self, batch_size: Any) -> list[Tensor]:
        """Zeros for every state, `(batch_size, state_size)`."""
        return [ops.zeros((batch_size, *shape), dtype=self.compute_dtype) for shape in self.state_shapes]

    def reset_state(self) -> None:
        """Resets the states of a `stateful` layer to its initial states."""
        if self.states:
            first = self.get_initial_state(self.states[0].shape[0])
            for state, value in zip(self.states, first, strict=True):
                state.assign(ops.cast(value, state.dtype))
        if self._carried.position is not None:
            self._carried.position.assign(0)

    def reset_states(self) -> None:
        """Alias of `reset_state`, as in Keras."""
        self.reset_state()

    def _initial_states(self, sequences: Tensor, initial_state: Any) -> list[Tensor]:
        batch_size = ops.shape(sequences)[0]
        if initial_state is None:
            # Copied because torch would else see the tensor change before its backward pass.
            carried = [ops.copy(ops.convert_to_tensor(state)) for state in self.states or []]
            initial_state = carried if self.stateful else self.get_initial_state(batch_size)
        if any(keras.tree.is_nested(state) for state in self.nested(list(range(len(self.state_shapes))))):
            initial_state = keras.tree.flatten(initial_state)
        states = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        states = [ops.convert_to_tensor(state) for state in states]
        self._check_states(sequences.shape, [state.shape for state in states])
        return [ops.cast(state, self.compute_dtype) for state in states]

    # The call.

    def call(
        self,
        sequences: Tensor,
        initial_state: Tensor | list[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
        sequences_mask: Tensor | None = None,
        start: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        length = self.checked_shape(sequences.shape)[1]
        self._check_unroll(length)
        self._check_batch_size(sequences.shape[0])
        # Keras hands the mask of the inputs on as `mask` only if they are the only tensors. Beside an
        # initial state it comes under this name, or padding would be read as data.
        mask = sequences_mask if mask is None else mask
        states = self._initial_states(sequences, initial_state)
        mask = checked_mask(mask, sequences)
        start, offsets = self._phase(start, sequences)
        if offsets is not None:
            sequences, mask = self._laid_out(sequences, mask, offsets)
        length = sequences.shape[1]
        unroll = self.unroll
        if isinstance(unroll, str):  # "auto"
            unroll = fastest_form(length, self._program.compiler, self.few_timesteps)
        outputs, states = self._program(
            sequences,
            states,
            mask,
            self.weight_values(ops.shape(sequences)[1], start),
            self.random_tensors(sequences, states, bool(training)),
            offsets,
            Options(
                self.return_sequences,
                self.go_backwards,
                self.zero_output_for_mask,
                unroll,
                first_timestep(start),
                length if unroll is True else None,
            ),
        )
        if self.stateful:
            for variable, state in zip(self.states or [], states, strict=True):
                variable.assign(ops.cast(state, variable.dtype))
        if self._carried.position is not None:
            end = start + ops.shape(sequences)[1]
            self._carried.position.assign(end % self.timestep_weights.cycle)
        if not self.return_state:
            return outputs
        return outputs, *self.nested(states)

    def _phase(self, start: Any, sequences: Tensor) -> tuple[Any, Tensor | None]:
        """The timestep at which all samples begin, and their offsets (see `laid_out`) if they differ."""
        start = self._carried.position if start is None else start
        if start is None:
            return None, None
        start = self.checked_start(start, sequences.shape)
        if isinstance(start, int) or len(start.shape) == 0:
            return start, None
        if self.stateful:
            raise ValueError(
                "Expected one `start` for all samples of a stateful layer, which carries it on. "
                f"Received: shape {tuple(start.shape)}"
            )
        return None, start

    def _laid_out(self, sequences: Tensor, mask: Tensor | None, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Sequences and mask, in which those timesteps stand together that use the same weights."""
        cycle = self.timestep_weights.cycle
        if self.go_backwards:  # and so begins where it will end
            offsets = cycle - 1 - offsets
        present = ops.expand_dims(presence(ops.shape(sequences)[1], offsets, cycle), -1)
        if mask is not None:
            present = ops.logical_and(present, laid_out(mask, offsets, cycle))
        return laid_out(sequences, offsets, cycle), present

    def _processed(
        self,
        sequences: Tensor,
        states: list[Tensor],
        mask: Tensor | None,
        weights: dict[str, Any],
        random: dict[str, Any],
        offsets: Tensor | None,
        options: Options,
    ) -> tuple[Nested, list[Tensor]]:
        """The layer as a pure function: batch-major in and out, all of the mathematics in between."""
        inputs = ops.swapaxes(sequences, 0, 1)
        mask = None if mask is None else ops.swapaxes(mask, 0, 1)
        if options.go_backwards:
            inputs = ops.flip(inputs, 0)
            mask = None if mask is None else ops.flip(mask, 0)
        outputs, states = self.recurrence(
            Sequences(inputs, states, mask, weights, options.start, random, options.unroll)
        )
        if offsets is not None:
            cycle = self.timestep_weights.cycle
            outputs, mask = keras.tree.map_structure(
                lambda x: ops.swapaxes(taken_back(ops.swapaxes(x, 0, 1), offsets, cycle), 0, 1),
                (outputs, mask),
            )

        def finished(output: Tensor) -> Tensor:
            if mask is not None and options.zero_output_for_mask:
                output = ops.where(in_rank_of(output, mask), output, 0)
            elif mask is not None:
                output = hold(output, mask, options.unroll)
            return ops.swapaxes(output, 0, 1) if options.return_sequences else output[-1]

        return keras.tree.map_structure(finished, outputs), states

    # Shapes, masks, configuration.

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> tuple:
        batch_size, length, *_ = self.checked_shape(sequences_shape)
        self._check_states(sequences_shape, initial_state_shape)
        self._check_unroll(length)
        self._check_batch_size(batch_size)
        output = self.step_output_shape((batch_size, length) if self.return_sequences else (batch_size,))
        if not self.return_state:
            return output
        return output, *self.nested([(batch_size, *shape) for shape in self.state_shapes])

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        mask = first(mask) if self.return_sequences else None
        return [mask] + [None] * len(self.nested(self.state_shapes)) if self.return_state else mask
