"""Keras's cells as pure functions, which loops and their gradients can run any number of times."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import keras
from keras import ops

from untied_rnn._types import Nested, Tensor, Tensors


class Values(NamedTuple):
    """What a cell reads at a timestep, beside its inputs and states.

    Attributes:
        weights: The cell's weights.
        outer, constants: The variables that `PureCell` has under these names.
        seeds: The timestep's seed for each generator.
        masks: What `PureCell.masks` returned; empty without training.
    """

    weights: Tensors
    outer: Tensors
    constants: Tensors
    seeds: Tensors
    masks: list[Nested]


class PureCell:
    """A cell whose weights, random seeds and dropout masks are arguments of its call.

    Args:
        cell: The cell. Its variables are not used, but for their number and shapes.
    """

    def __init__(self, cell: keras.Layer):
        self.cell = cell
        # Of its layers, all whose numbers are drawn within a timestep.
        self.seed_generators: list[keras.random.SeedGenerator] = []
        # Variables that the cell reads and that are not its own, with a gradient and without. All timesteps
        # share them.
        self.outer: list[keras.Variable] = []
        self.constants: list[keras.Variable] = []
        self._draws: dict[bool, list[int]] = {}

    def trace(self, inputs: keras.KerasTensor, states: list[Nested]) -> Nested:
        """Calls the cell on symbolic tensors, which builds what is not built yet.

        Returns:
            The outputs, of which the shapes are of use.

        Raises:
            ValueError: The cell returns something else than an output and as many states of the same shapes.
        """
        scopes: dict[bool, _Recorder] = {}

        def call(inputs: Tensor, states: list[Nested], training: bool) -> Nested:
            masks = self.masks(inputs) if training else []
            scopes[training] = _Recorder([])
            return self._call(scopes[training], inputs, states, masks, training)

        run = _Operation(call).compute_output_spec
        if keras.backend.backend() == "torch":  # draws no random numbers in a symbolic call
            run = call
            inputs, states = keras.tree.map_structure(
                lambda spec: ops.zeros(spec.shape, spec.dtype), (inputs, states)
            )
        for training in (True, False):
            with keras.StatelessScope():  # no generator moves on
                results = run(inputs, states, training=training)
        outputs = self._output_of(results, states)
        own = {id(variable) for variable in self.cell.variables}
        read = {i: variable for scope in scopes.values() for i, variable in scope.read.items()}
        others = [variable for i, variable in read.items() if i not in own]
        self.outer = [v for v in others if keras.backend.is_float_dtype(v.dtype)]
        self.constants = [v for v in others if not keras.backend.is_float_dtype(v.dtype)]
        generators = {id(generator.state): generator for generator in seed_generators(self.cell)}
        drawn = [i for i in generators if any(scope.changes(i) for scope in scopes.values())]
        self.seed_generators = [generators[i] for i in drawn]
        self._draws = {training: [scope.changes(i) for i in drawn] for training, scope in scopes.items()}
        return outputs

    def _output_of(self, results: Any, states: list[Nested]) -> Nested:
        def shapes(tensors: Nested) -> list[tuple[int, ...]]:
            return [tuple(tensor.shape[1:]) for tensor in keras.tree.flatten(tensors)]

        pair = isinstance(results, (tuple, list)) and len(results) == 2
        if not pair or shapes(results[1]) != shapes(states):
            received = "states" if pair else f"a `{type(results).__name__}`"
            raise ValueError(
                "Expected a cell that returns its output and its states, `output, [state, ...]`, the states "
                f"of the shapes {shapes(states)} for one sample. Received: {received} of the shapes "
                f"{shapes(results[1] if pair else results)} from cell={self.cell!r}"
            )
        return results[0]

    def masks(self, inputs: Tensor) -> list[Nested]:
        """Dropout masks of Keras's own cells, which use them at all timesteps of a call."""
        found = []
        for part in parts(self.cell):
            batch_size = ops.shape(inputs)[0]
            if _has_dropout(part):
                part.reset_dropout_mask()
                part.reset_recurrent_dropout_mask()
                first, *_ = keras.tree.flatten(part.state_size)
                state = ops.zeros((batch_size, first), inputs.dtype)
                # Of the class, for `_call` puts others in the places of the cell's.
                of_class = type(part)
                found.append(
                    [
                        of_class.get_dropout_mask(part, inputs),
                        of_class.get_recurrent_dropout_mask(part, state),
                    ]
                )
            if len(parts(self.cell)) > 1:
                inputs = ops.zeros((batch_size, output_size(part)), inputs.dtype)
        return found

    def seeds(self, timesteps: Any, training: bool) -> list[Tensor]:
        """For each generator the seeds of all timesteps, `(timesteps, 2)`; the generators move on."""
        found = []
        for generator, draws in zip(self.seed_generators, self._draws[training], strict=True):
            seed, count = ops.unstack(ops.convert_to_tensor(generator.state))
            counts = count + ops.cast(ops.arange(timesteps) * draws, count.dtype)
            found.append(ops.stack([ops.broadcast_to(seed, ops.shape(counts)), counts], axis=1))
            generator.state.assign(ops.stack([seed, count + ops.cast(timesteps * draws, count.dtype)]))
        return found

    def __call__(
        self,
        inputs: Tensor,
        states: list[Nested],
        values: Values,
        training: bool,
    ) -> tuple[Nested, Nested]:
        """The outputs and states of one timestep.

        Args:
            inputs, states, training: As the cell's own call takes them.
            values: All else that the cell reads.
        """
        states_of_seeds = [generator.state for generator in self.seed_generators]
        variables = [*self.cell.weights, *self.outer, *self.constants, *states_of_seeds]
        scope = _Recorder(
            list(
                zip(
                    variables, [*values.weights, *values.outer, *values.constants, *values.seeds], strict=True
                )
            )
        )
        results = self._call(scope, inputs, states, values.masks, training)
        known = {id(variable) for variable in [*self.cell.variables, *variables]}
        for i, variable in scope.read.items():
            if i not in known:
                raise NotImplementedError(
                    "Expected a cell that reads the same variables in every call. Received: "
                    f"cell={self.cell!r}, which had not read '{variable.path}' when the layer was built"
                )
        for variable in scope.changed:
            if not any(variable is state for state in states_of_seeds):
                raise NotImplementedError(
                    "Expected a cell that leaves variables as they are when it is called. Received: "
                    f"cell={self.cell!r}, which changes '{variable.path}'"
                )
        if scope.losses:
            raise NotImplementedError(
                f"Expected a cell that adds no losses when it is called. Received: cell={self.cell!r}"
            )
        return results

    def _call(
        self, scope: "_Recorder", inputs: Tensor, states: list[Nested], masks: list[Nested], training: bool
    ) -> tuple[Nested, Nested]:
        remaining = iter(masks)
        for part in filter(_has_dropout, parts(self.cell)):
            # None without training: some cells draw masks then as well, and do not use them.
            pair = next(remaining, (None, None))
            for name, mask in zip(("get_dropout_mask", "get_recurrent_dropout_mask"), pair, strict=True):
                setattr(part, name, lambda _, mask=mask: mask)
        takes_training = "training" in inspect.signature(self.cell.call).parameters
        with scope:
            # Called, and not its `call`: that would not compute in the cell's precision.
            return self.cell(inputs, states, **({"training": training} if takes_training else {}))


class _Recorder(keras.StatelessScope):
    """A scope that notes which variables are read in it, and which are changed."""

    def __init__(self, state_mapping: list[tuple[keras.Variable, Tensor]]):
        super().__init__(state_mapping=state_mapping, collect_losses=True)
        self.read: dict[int, keras.Variable] = {}
        self.changed: list[keras.Variable] = []

    def get_current_value(self, variable: keras.Variable) -> Tensor:
        self.read[id(variable)] = variable
        return super().get_current_value(variable)

    def add_update(self, update: tuple[keras.Variable, Tensor]) -> None:
        self.changed.append(update[0])
        super().add_update(update)

    def changes(self, variable_id: int) -> int:
        """How often a variable was changed."""
        return sum(id(variable) == variable_id for variable in self.changed)


class _Operation(keras.Operation):
    """A function, for a symbolic call."""

    def __init__(self, function: Callable[..., Nested]):
        super().__init__()
        self.function = function

    def call(self, *args: Any, **kwargs: Any) -> Nested:
        return self.function(*args, **kwargs)


def copy(cell: keras.Layer, dtype_policy: keras.DTypePolicy | None = None) -> keras.Layer | None:
    """A copy that is not built, of another `dtype` if one is given; `None` if Keras cannot make one."""
    left_out = ("build_config", "shared_object_id")

    def changed(config: Any) -> Any:
        """Without the entries that would build the cells of a stack, or take another stack's cells."""
        if isinstance(config, dict):
            config = {key: changed(value) for key, value in config.items() if key not in left_out}
            if dtype_policy is not None and "dtype" in config:
                config["dtype"] = keras.dtype_policies.serialize(dtype_policy)
        return [changed(value) for value in config] if isinstance(config, list) else config

    try:
        config = changed(cell.get_config())
    except NotImplementedError:  # an argument that Keras cannot write down
        return None
    parameters = inspect.signature(type(cell).__init__).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        # Keras's `from_config` would hand over `name`, `dtype` and `trainable`, too.
        config = {key: value for key, value in config.items() if key in parameters}
    try:
        return type(cell).from_config(config)
    except TypeError:  # arguments that `get_config` does not return
        return None


def outside_of_functions() -> AbstractContextManager:
    """Where weights have values also if the layer is built within a `tf.function`."""
    if keras.backend.backend() != "tensorflow":
        return nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def layers(layer: keras.Layer) -> list[keras.Layer]:
    """A layer and all layers within."""
    found = [layer]
    for other in found:  # which grows meanwhile
        for value in keras.tree.flatten(list(vars(other).values())):
            if isinstance(value, keras.Layer) and not any(value is known for known in found):
                found.append(value)
    return found


def seed_generators(cell: keras.Layer) -> list[keras.random.SeedGenerator]:
    """The generators of a cell and of all layers within, each once."""
    values = (value for layer in layers(cell) for value in keras.tree.flatten(list(vars(layer).values())))
    found = {id(value): value for value in values if isinstance(value, keras.random.SeedGenerator)}
    return list(found.values())


def parts(cell: keras.Layer) -> list[keras.Layer]:
    """The cells of a stack, or the cell."""
    return [part for c in cell.cells for part in parts(c)] if hasattr(cell, "cells") else [cell]


def output_size(cell: keras.Layer) -> int:
    return getattr(cell, "output_size", None) or keras.tree.flatten(cell.state_size)[0]


def _has_dropout(cell: keras.Layer) -> bool:
    return hasattr(cell, "get_dropout_mask") and hasattr(cell, "get_recurrent_dropout_mask")
