"""`UntiedRNN`: any Keras cell, with separate weights for every timestep."""

import functools
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Unpack

import keras
from keras import ops

from untied_rnn._arguments import KerasObject, LayerArguments
from untied_rnn._cells import pure as cells
from untied_rnn._cells.weights import CellWeights
from untied_rnn._layers.recurrent import RecurrentLayer, Sequences
from untied_rnn._layers.shapes import plain
from untied_rnn._loops.compilation import WrittenOut
from untied_rnn._loops.recurrence import along_time, in_rank_of
from untied_rnn._loops.scan import Made, Stack, scan
from untied_rnn._types import Nested, Shape, Tensor, Tensors
from untied_rnn.sharing import Sharing, SharingArgument, Untied

_BATCH = 2  # of the symbolic call that builds a cell


class _Inputs(NamedTuple):
    """What arrives at a timestep, beside the states; or at all of them.

    Attributes:
        x: Input of the cell.
        mask: Boolean, `(batch, 1)`, or `None`: where it is `False` the states are kept.
        seeds, constants, dropout_masks: See `PureCell`.
    """

    x: Tensor
    mask: Tensor | None
    seeds: Tensors
    constants: Tensors
    dropout_masks: Nested


class _Weights(NamedTuple):
    """The cell's weights, and the variables that it reads beside its own."""

    own: Any
    outer: Any


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedRNN(RecurrentLayer):
    r"""Runs any recurrent cell with weights that are separate for every timestep.

    With separate weights `theta_t` of the cell for each timestep `t = 1 .. T`:

    ```
    y_t, states_t = cell(x_t, states_{t-1}; theta_t)
    ```

    Drop-in replacement for `keras.layers.RNN`: its arguments have the same order and meaning. Each weight of
    the cell becomes one variable of the same name with a leading axis of weight sets. Each set is what the
    cell's own initializers, regularizers and constraints make of it.

    Args:
        cell: A `keras.Layer` with `state_size` and `call(inputs, states)`, which returns an output and the
            states after it: `keras.layers.LSTMCell`, `keras.layers.StackedRNNCells` or one of your own. A
            list of cells is stacked. It may be made of layers and models, and its inputs, states and
            outputs may have any shapes. It serves as a template and stays as it is; a cell without
            `get_config`, which cannot be copied, is built. A variable that it reads and that is not its own
            is shared by all timesteps, and trained if the model has it. Random layers, such as
            `keras.layers.Dropout`, draw anew at each timestep; the dropout of Keras's own cells drops the
            same units at all of them. Weights that are not trainable are constants. A cell that changes its
            variables when it is called, as `BatchNormalization` does, or adds losses is an error. An
            initializer with an integer seed gives each timestep its own values if the cell has it as an
            attribute. If `dtype` is given, it is also the cell's.
        sharing: As for the other layers; or a dictionary of these by the names of the cell's weights. Weights
            that it does not name are untied.
        activity_regularizer: Regularizer of what the layer outputs.

    Output shape:
        `(batch, ...)`, or `(batch, timesteps, ...)` with `return_sequences`: the cell's outputs, nested if
        they are. With `return_state`, a tuple of that and the states, nested as the cell takes them.

    Variables:
        The cell's, in its order, with a leading axis of weight sets: as many as timesteps, or fewer if they
        are shared. Weights of nested layers are prefixed with the layer's name.

    Example:

    ```python
    import keras
    import numpy as np
    from untied_rnn import UntiedRNN

    rows = np.random.random((32, 28, 28)).astype("float32")
    layer = UntiedRNN(keras.layers.LSTMCell(50))
    assert layer(rows).shape == (32, 50)
    assert layer.weights[0].shape == (28, 28, 200)  # the kernels of 28 timesteps
    ```

    References:
        - [Gregor and LeCun, 2010, Learning fast approximations of sparse
          coding](https://icml.cc/Conferences/2010/papers/449.pdf), a separate cell for each iteration.
    """

    tied_class = keras.layers.RNN
    any_rank = True
    has_named_weights = True
    # Measured on 2 cores (`python tests/benchmarks/unfolded.py`), at 12 to 30 timesteps: written out, a
    # training step takes 0.6 to 0.9 of the loop's time, and with convolutions under XLA a third. The first
    # call takes 0.1 s for each timestep in a plain graph and 0.2 to 0.4 under XLA, half of a list's.
    few_timesteps = WrittenOut(xla=32, graph=32, eager=0)

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool | int | str = "auto",
        zero_output_for_mask: bool = False,
        *,
        timesteps: int | None = None,
        sharing: SharingArgument = "untied",
        frozen_timesteps: Sequence[int] | None = None,
        activity_regularizer: KerasObject | None = None,
        jit_compile: bool | str = "auto",
        **kwargs: Unpack[LayerArguments],
    ):
        received = dict(locals())
        del received["cell"]
        if isinstance(cell, (list, tuple)):
            cell = keras.layers.StackedRNNCells(list(cell))
        if not isinstance(cell, keras.Layer) or not hasattr(cell, "state_size"):
            raise TypeError(f"`cell` must be a `keras.Layer` with `state_size`. Received: cell={cell!r}")
        if isinstance(cell, (keras.layers.RNN, RecurrentLayer)):
            raise TypeError(
                "`cell` must be one timestep of a recurrent layer, as `keras.layers.LSTMCell` is: give the "
                "layer's cell, or use `UntiedRNN.from_tied(layer)`. "
                f"Received the whole layer: cell={cell!r}"
            )
        if any(size < 1 for size in keras.tree.flatten(plain(cell.state_size))):
            raise ValueError(
                "Expected a cell whose `state_size` is known before it is built, such as 3 or ((8, 8, 3),). "
                "Keras's convolutional cells learn theirs when they are built. "
                f"Received: state_size={cell.state_size} of cell={cell!r}"
            )
        if cell.built and cell.variables:
            raise ValueError(
                "Expected a cell that is not built, since each timestep gets separate weights "
                "(`UntiedRNN.from_tied(keras.layers.RNN(cell))` copies the cell's weights). "
                f"Received: cell={cell!r}"
            )
        kwargs.setdefault("dtype", cell.dtype_policy)
        super().__init__(received)
        # In a namespace so that Keras does not take the template's weights for this layer's.
        self._cells = SimpleNamespace(given=cell, pure=None, outputs=None, states=_initial_states(cell))
        size = cell.state_size
        self.state_size = [size] if isinstance(size, int) else list(size)
        self.output_size = cells.output_size(cell)

    @property
    def cell(self) -> keras.Layer:
        """The cell that the layer was made with."""
        return self._cells.given

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cell": keras.saving.serialize_keras_object(self.cell)}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "UntiedRNN":
        cell = keras.saving.deserialize_keras_object(config["cell"], custom_objects=custom_objects)
        return cls(**{**config, "cell": cell})

    @classmethod
    def arguments_of(cls, layer: keras.Layer) -> dict[str, Any]:
        cell = cells.copy(layer.cell)
        if cell is None:
            raise TypeError(
                "Expected a cell with `get_config`, which returns the arguments of its constructor, for the "
                f"new layer gets a copy. Received: cell={layer.cell!r}"
            )
        config = {**super().arguments_of(layer), "cell": cell}
        if not isinstance(layer, cls.tied_class):
            return config
        # A `keras.layers.LSTM` is an `RNN` as well, whose cell has its other arguments. The cell's own
        # `dtype` is what it computes in.
        known = {*inspect.signature(UntiedRNN).parameters, "trainable"}
        return {k: v for k, v in config.items() if k in known} | {"dtype": layer.cell.dtype_policy}

    # Weights.

    def build_weights(self, step_shape: tuple[int, ...]) -> None:
        # A cell that cannot be copied serves itself. Its weights are made and not used.
        cell = self._copy() or self.cell
        self._cells.pure = cells.PureCell(cell)
        with cells.outside_of_functions():
            weights = CellWeights(cell, functools.partial(self._build_cell, step_shape), self._copy)
        # As the layers within the given cell are called, if all of them are there before it is built: those
        # of a copy may have names with other numbers.
        copies, layers = cells.layers(cell), cells.layers(self.cell)
        pairs = zip(copies, layers, strict=True) if len(copies) == len(layers) else ()
        given = {copy.name: layer.name for copy, layer in pairs}
        for i, weight in enumerate(cell.weights):
            path = weight.path.split("/")
            # A weight that is made in the constructor does not stand within the cell.
            within = path[path.index(cell.name) + 1 :] if cell.name in path else path
            name = "_".join(given.get(part, part) for part in within)
            name = f"{name}_{i}" if name in self.timestep_weights else name
            options = (weights.initializer(i), weight.regularizer, weight.constraint)
            sharing = self.sharing_of(name)
            variable = self.add_timestep_weight(
                name, tuple(weight.shape), *options, sharing, trainable=weight.trainable
            )
            if not hasattr(self, name):
                setattr(self, name, variable)
        # Tracked, so that a backend without side effects (JAX) is told that they change.
        self.seed_generators = cells.seed_generators(cell)

        if isinstance(self.sharing, dict) and (
            unknown := [n for n in self.sharing if n not in self.timestep_weights]
        ):
            names = [weight.name for weight in self.timestep_weights]
            raise ValueError(f"Expected names of weights in `sharing`: {names}. Received: {unknown}")

    def sharing_of(self, name: str) -> Sharing:
        return self.sharing.get(name, Untied()) if isinstance(self.sharing, dict) else self.sharing

    def _copy(self) -> keras.Layer | None:
        return cells.copy(self.cell, self.dtype_policy)

    def _build_cell(self, step_shape: tuple[int, ...], cell: keras.Layer) -> None:
        if type(cell).build is not keras.Layer.build:
            cell.build((None, *step_shape))
        cell.built = True
        pure = self._cells.pure
        is_template = cell is pure.cell
        # Cells and layers without `build` are built when they are called.
        if is_template or len(cell.weights) < len(pure.cell.weights):
            inputs = keras.KerasTensor((_BATCH, *step_shape), self.compute_dtype)
            states = [keras.KerasTensor((_BATCH, *shape), self.compute_dtype) for shape in self.state_shapes]
            outputs = (pure if is_template else cells.PureCell(cell)).trace(inputs, self.nested(states))
            if is_template:
                self._cells.outputs = outputs

    def weight_values(self, length: Any, start: Any = None) -> dict[str, Any]:
        """What the weights are made of, and the variables that the cell reads beside its own."""
        outer = {
            f"outer_{i}": ops.cast(ops.convert_to_tensor(variable), variable.dtype)
            for i, variable in enumerate(self._cells.pure.outer)
        }
        return {**super().weight_values(length, start), **outer}

    def weights_of(self, values: dict[str, Any], start: int | None = None) -> dict[str, Stack | Made]:
        own = {name: value for name, value in values.items() if name in self.timestep_weights}
        outer = {name: value for name, value in values.items() if name not in own}
        shared = {name: Stack(value[None], lambda t: t * 0) for name, value in outer.items()}
        return {**super().weights_of(own, start), **shared}

    # Shapes.

    @property
    def state_shapes(self) -> list[tuple[int, ...]]:
        return [tuple(state.shape[1:]) for state in keras.tree.flatten(self._cells.states)]

    def nested(self, states: list[Any]) -> list[Any]:
        return keras.tree.pack_sequence_as(self._cells.states, states)

    def step_output_shape(self, prefix: Shape) -> Any:
        if self._cells.outputs is None:  # not built
            return super().step_output_shape(prefix)
        return keras.tree.map_structure(lambda output: (*prefix, *output.shape[1:]), self._cells.outputs)

    # The call.

    def get_initial_state(self, batch_size: Any) -> list[Tensor]:
        """The cell's initial states, or zeros."""
        if not hasattr(self.cell, "get_initial_state"):
            return super().get_initial_state(batch_size)
        return keras.tree.flatten(self.cell.get_initial_state(batch_size=batch_size))

    def random_tensors(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Any]:
        pure = self._cells.pure
        return {
            "training": training,
            "seeds": pure.seeds(ops.shape(sequences)[1], training),
            "constants": [ops.convert_to_tensor(variable) for variable in pure.constants],
            "dropout_masks": pure.masks(sequences[:, 0]) if training else [],
        }

    def recurrence(self, sequences: Sequences) -> tuple[Nested, list[Tensor]]:
        random, weights = sequences.random, self.weights_of(sequences.weights, sequences.start)

        def step(before: Tensors, inputs: _Inputs, w: _Weights) -> tuple[Tensors, Nested]:
            values = cells.Values(w.own, w.outer, inputs.constants, inputs.seeds, inputs.dropout_masks)
            output, after = self._cells.pure(inputs.x, self.nested(before), values, random["training"])
            after = [ops.cast(state, self.compute_dtype) for state in keras.tree.flatten(after)]
            if inputs.mask is not None:
                pairs = zip(after, before, strict=True)
                after = [ops.where(in_rank_of(new, inputs.mask), new, old) for new, old in pairs]
            return after, keras.tree.map_structure(lambda y: ops.cast(y, self.compute_dtype), output)

        def repeated(fixed: Nested) -> Nested:
            return keras.tree.map_structure(lambda tensor: along_time(tensor, sequences.inputs), fixed)

        outputs = keras.tree.flatten(self._cells.outputs)
        last, ys = scan(
            step,
            sequences.states,
            _Inputs(
                sequences.inputs,
                sequences.mask,
                random["seeds"],
                repeated(random["constants"]),
                repeated(random["dropout_masks"]),
            ),
            _Weights(
                own=[weights[weight.name] for weight in self.timestep_weights],
                outer=[weight for name, weight in weights.items() if name not in self.timestep_weights],
            ),
            unroll=sequences.unroll,
            y_shapes=[(sequences.inputs.shape[1], *y.shape[1:]) for y in outputs],
        )
        return ys, last


def _initial_states(cell: keras.Layer) -> list[Any]:
    """The cell's initial states for one sample, nested as it takes them."""
    size = plain(cell.state_size)
    sizes = [size] if isinstance(size, int) else size
    if not hasattr(cell, "get_initial_state"):
        shapes = [size if isinstance(size, list) else [size] for size in sizes]
        return [keras.KerasTensor((1, *shape)) for shape in shapes]
    with cells.outside_of_functions():
        states = cell.get_initial_state(batch_size=1)
    flat = keras.tree.flatten(states)
    if len(flat) == len(keras.tree.flatten(sizes)):
        return keras.tree.pack_sequence_as(sizes, flat)
    return list(states) if keras.tree.is_nested(states) else [states]
