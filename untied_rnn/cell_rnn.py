"""`UntiedRNN`: any Keras cell, with separate weights for every timestep."""

import functools
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any, Unpack

import keras
import numpy as np
from keras import ops

from untied_rnn.arguments import KerasObject, LayerArguments
from untied_rnn.compilation import WrittenOut
from untied_rnn.draws import StackInitializer, initializer_at, is_drawn_in_one_pass, is_elementwise
from untied_rnn.layer import Shape, Tensor
from untied_rnn.lstm import UnitForgetBias
from untied_rnn.recurrence import along_time
from untied_rnn.rnn import BaseUntiedRNN, Run
from untied_rnn.scan import Stack, Tensors, scan


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedRNN(BaseUntiedRNN):
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
            list of cells is stacked. It serves as a template and stays as it is. Its weights that are not
            trainable are constants: a cell that changes them in its call, as `BatchNormalization` does, is
            an error. So is one that draws random numbers, but for the dropout of Keras's own cells (on
            torch, where random numbers leave no trace, it goes unnoticed). An initializer with an integer
            seed gives each timestep its own values if the cell has it as an attribute. If `dtype` is
            given, it is also the cell's.
        activity_regularizer: Regularizer of what the layer outputs.

    Output shape:
        `(batch, features)`, or `(batch, timesteps, features)` with `return_sequences`, where `features` is
        the cell's `output_size`, or else its first state's. With `return_state`, a tuple of that and the
        states, nested as the cell's `state_size` is.

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
    assert [tuple(w.shape) for w in layer.weights] == [(28, 28, 200), (28, 50, 200), (28, 200)]
    ```

    References:
        - [Gregor and LeCun, 2010, Learning fast approximations of sparse
          coding](https://icml.cc/Conferences/2010/papers/449.pdf), a separate cell for each iteration.
    """

    tied_class = keras.layers.RNN
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
        block_size: int | None = None,
        period: int | None = None,
        weight_index: Sequence[int] | None = None,
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
        if cell.built and cell.variables:
            raise ValueError(
                "Expected a cell that is not built, since each timestep gets separate weights "
                "(`UntiedRNN.from_tied(keras.layers.RNN(cell))` copies the cell's weights). "
                f"Received: cell={cell!r}"
            )
        kwargs.setdefault("dtype", cell.dtype_policy)
        super().__init__(received)
        # In a namespace so that Keras does not take the template's weights for this layer's.
        self._cells = SimpleNamespace(given=cell, template=cell)
        size = cell.state_size
        self.state_size = [size] if isinstance(size, int) else list(size)
        self.output_size = _output_size(cell)

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
    def _arguments_of(cls, layer: keras.Layer) -> dict[str, Any]:
        config = {**super()._arguments_of(layer), "cell": _clone(layer.cell)}
        if not isinstance(layer, cls.tied_class):
            return config
        # A `keras.layers.LSTM` is an `RNN` as well, whose cell has its other arguments. The cell's own
        # `dtype` is what it computes in.
        known = {*inspect.signature(UntiedRNN).parameters, "trainable"}
        return {k: v for k, v in config.items() if k in known} | {"dtype": layer.cell.dtype_policy}

    # Weights.

    def build_weights(self, input_dim: int) -> None:
        cells = _Cells(_clone(self.cell, self.dtype_policy), (None, input_dim))
        self._cells.template = cell = cells.template
        # As the layers within the given cell are called, if all of them are there before it is built: those
        # of a copy may have names with other numbers.
        copies, layers = _layers(cell), _layers(self.cell)
        pairs = zip(copies, layers, strict=True) if len(copies) == len(layers) else ()
        given = {copy.name: layer.name for copy, layer in pairs}
        for i, weight in enumerate(cell.weights):
            path = weight.path.split("/")
            name = "_".join(given.get(part, part) for part in path[path.index(cell.name) + 1 :])
            name = f"{name}_{i}" if name in self._stacked.parts else name
            options = (cells.initializer(i), weight.regularizer, weight.constraint, weight.trainable)
            stack = self.add_timestep_weight(name, tuple(weight.shape), *options)
            if not hasattr(self, name):
                setattr(self, name, stack)
        # Tracked, so that a backend without side effects (JAX) is told that they change.
        self.seed_generators = [part.seed_generator for part in _parts(cell) if _has_dropout(part)]

    # The call.

    def get_initial_state(self, batch_size: Any) -> list[Tensor]:
        """The cell's initial states, or zeros."""
        if not hasattr(self.cell, "get_initial_state"):
            return super().get_initial_state(batch_size)
        return keras.tree.flatten(self.cell.get_initial_state(batch_size=batch_size))

    def noise(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Any]:
        if not training:
            return {}
        inputs, masks = sequences[:, 0], []
        for part in _parts(self._cells.template):
            first, *_ = keras.tree.flatten(part.state_size)
            state = ops.zeros((ops.shape(inputs)[0], first), inputs.dtype)
            if _has_dropout(part):
                part.reset_dropout_mask()
                part.reset_recurrent_dropout_mask()
                # Of the class, for `_step` puts others in their places.
                of_class = type(part)
                masks.append(
                    [
                        of_class.get_dropout_mask(part, inputs),
                        of_class.get_recurrent_dropout_mask(part, state),
                    ]
                )
            inputs = ops.zeros((ops.shape(inputs)[0], _output_size(part)), inputs.dtype)
        return {"masks": masks}

    def recurrence(self, run: Run) -> tuple[Tensor, list[Tensor]]:
        training, drops = "masks" in run.noise, run.noise.get("masks", [])

        def step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
            keep, x_t, *flat = x
            output, after = self._step(x_t, before, w, keras.tree.pack_sequence_as(drops, flat), training)
            if keep is not None:
                after = [ops.where(keep, new, old) for new, old in zip(after, before, strict=True)]
            return after, [output]

        masks = (along_time(drop, run.inputs) for drop in keras.tree.flatten(drops))
        last, (outputs,) = scan(
            step,
            run.states,
            [run.mask, run.inputs, *masks],
            [Stack(stack, self.index) for stack in run.weights.values()],
            unroll=run.unroll,
            y_shapes=[(run.states[0].shape[0], self.output_size)],
        )
        return outputs, last

    def _step(
        self, inputs: Tensor, states: Tensors, weights: Tensors, drops: list, training: bool
    ) -> tuple[Tensor, Tensors]:
        """One timestep of the cell with these weights and dropout masks in the place of its own."""
        cell = self._cells.template
        for part in filter(_has_dropout, _parts(cell)):
            # None without training: some cells draw masks then as well, and do not use them.
            masks = drops.pop(0) if drops else (None, None)
            for name, mask in zip(("get_dropout_mask", "get_recurrent_dropout_mask"), masks, strict=True):
                setattr(part, name, lambda _, mask=mask: mask)
        kwargs = {"training": training} if "training" in inspect.signature(cell.call).parameters else {}
        values = zip(cell.weights, weights, strict=True)
        with keras.StatelessScope(state_mapping=list(values), collect_losses=True) as scope:
            given = [scope.get_current_value(variable) for variable in cell.variables]
            # Called, and not its `call`: that would not compute in the cell's precision.
            output, after = cell(inputs, self.nested(states), **kwargs)
        for variable, value in zip(cell.variables, given, strict=True):
            if scope.get_current_value(variable) is not value:
                raise NotImplementedError(
                    "Expected a cell that leaves its variables as they are when it is called. Received: "
                    f"cell={cell!r}, which changes '{variable.path}'"
                )
        if scope.losses:
            raise NotImplementedError(
                f"Expected a cell that adds no losses when it is called. Received: cell={cell!r}"
            )
        return ops.cast(output, self.compute_dtype), keras.tree.flatten(after)


class _Cells:
    """Cells like one that is given, and what their weights are drawn from.

    Weights that Keras's own initializers draw are drawn without the cells, in one pass: the cells of 3,136
    weight sets took 20 s to build.
    """

    def __init__(self, cell: keras.Layer, input_shape: Shape):
        self.cell, self.input_shape = cell, input_shape
        self.weights: dict[int, list[np.ndarray]] = {}
        self.template = _clone(cell)
        # By the id of each weight of the template, what it was drawn from and the values that it got.
        self.drawn: dict[int, tuple[Any, Any]] = {}
        # A subclass may draw from something else than it is asked to.
        recorded = [v for v in _layers(self.template) if type(v).add_weight is keras.Layer.add_weight]
        for layer in recorded:
            layer.add_weight = functools.partial(self._add_weight, layer, layer.add_weight)
        self._build(self.template)
        for layer in recorded:
            del layer.add_weight  # the instance's, not the class's

    def initializer(self, i: int) -> Callable[..., Tensor]:
        """What the `i`-th weight is drawn from."""
        weight = self.template.weights[i]
        initializer, values = self.drawn.get(id(weight), (None, None))
        with _outside_of_functions():
            assigned = not np.array_equal(values, _values(weight))
        return _CellInitializer(self, i) if assigned or not is_drawn_in_one_pass(initializer) else initializer

    def weight(self, weight_set: int, i: int) -> np.ndarray:
        """The `i`-th weight of the cell of one weight set, which is built once."""
        if weight_set not in self.weights:
            cell = _clone(self.cell)
            for layer in _layers(cell):
                for name, value in vars(layer).items():
                    if isinstance(value, keras.initializers.Initializer):
                        setattr(layer, name, initializer_at(value, weight_set))
            self._build(cell)
            with _outside_of_functions():
                self.weights[weight_set] = [ops.convert_to_numpy(w) for w in cell.weights]
        return self.weights[weight_set][i]

    def _build(self, cell: keras.Layer) -> None:
        with _outside_of_functions():
            cell.build(self.input_shape)
        cell.built = True

    def _add_weight(
        self, layer: keras.Layer, add_weight: Callable[..., keras.Variable], *args: Any, **options: Any
    ) -> keras.Variable:
        """`layer.add_weight`, recorded."""
        weight = add_weight(*args, **options)
        initializer = keras.initializers.get(options.get("initializer"))
        if _is_unit_forget_bias(layer, options.get("name")) and is_elementwise(layer.bias_initializer):
            initializer = UnitForgetBias(layer.bias_initializer)
        self.drawn[id(weight)] = initializer, _values(weight)
        return weight


class _CellInitializer(StackInitializer):
    """Takes the values of the `i`-th weight from cells."""

    def __init__(self, cells: _Cells, i: int):
        self.cells, self.i = cells, i

    def draw(self, sets: np.ndarray, total: int, shape: tuple[int, ...], dtype: str | None) -> Tensor:
        return ops.stack([ops.convert_to_tensor(self.cells.weight(int(s), self.i), dtype) for s in sets])


def _is_unit_forget_bias(layer: keras.Layer, name: str | None) -> bool:
    """Whether Keras draws a weight from a function within `LSTMCell.build`, which no one else can call."""
    return type(layer).build is keras.layers.LSTMCell.build and layer.unit_forget_bias and name == "bias"


def _values(weight: keras.Variable) -> np.ndarray:
    return np.array(ops.convert_to_numpy(weight))  # a copy, since on torch assignments write into the array


def _outside_of_functions() -> AbstractContextManager:
    """Where weights have values also if the layer is built within a `tf.function`."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def _clone(cell: keras.Layer, dtype_policy: keras.DTypePolicy | None = None) -> keras.Layer:
    """A copy that is not built, of another `dtype` if one is given."""

    left_out = ("build_config", "shared_object_id")

    def changed(config: Any) -> Any:
        """Without the entries that would build the cells of a stack, or take another stack's cells."""
        if isinstance(config, dict):
            config = {key: changed(value) for key, value in config.items() if key not in left_out}
            if dtype_policy is not None and "dtype" in config:
                config["dtype"] = keras.dtype_policies.serialize(dtype_policy)
        return [changed(value) for value in config] if isinstance(config, list) else config

    return type(cell).from_config(changed(cell.get_config()))


def _layers(layer: keras.Layer) -> list[keras.Layer]:
    """A layer and all layers within."""
    found = [layer]
    for other in found:  # which grows meanwhile
        for value in keras.tree.flatten(list(vars(other).values())):
            if isinstance(value, keras.Layer) and not any(value is known for known in found):
                found.append(value)
    return found


def _parts(cell: keras.Layer) -> list[keras.Layer]:
    """The cells of a stack, or the cell."""
    return [part for c in cell.cells for part in _parts(c)] if hasattr(cell, "cells") else [cell]


def _has_dropout(cell: keras.Layer) -> bool:
    return hasattr(cell, "get_dropout_mask") and hasattr(cell, "get_recurrent_dropout_mask")


def _output_size(cell: keras.Layer) -> int:
    return getattr(cell, "output_size", None) or keras.tree.flatten(cell.state_size)[0]
