"""Models whose compiled programs train later models that differ in the values of variables alone."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

# Models that are kept have at most so many weights together (0.4 GB of float32).
KEPT_WEIGHTS = 100_000_000


class Programs:
    """What was compiled for the trials of a search."""

    def __init__(self) -> None:
        self.models: dict[str, keras.Model] = {}

    @contextlib.contextmanager
    def of(self, model: keras.Model, chosen: dict[str, Any]) -> Iterator[keras.Model]:
        """The model to train in place of `model`: an earlier one, or `model` itself.

        Programs are bound to the variables that they were compiled for. So these take the values of `model`'s
        for the time of training, and their own afterwards. `chosen` are the hyperparameters.
        """
        if keras.backend.backend() == "torch":  # compiles nothing
            yield model
            return
        key = _key(model, chosen)
        program = self.models.get(key, model)
        if program is model or _key(program, chosen) != key:  # changed since then
            self._keep(key, model)
            yield model
            return
        model.optimizer.build(model.trainable_variables)
        own = values(program)
        _assign(program, values(model))
        try:
            yield program
        finally:
            _assign(model, values(program))
            _assign(program, own)

    def _keep(self, key: str, model: keras.Model) -> None:
        """Keeps `model`, and of the earlier ones the latest that fit in."""
        self.models[key] = model
        while len(self.models) > 1 and sum(m.count_params() for m in self.models.values()) > KEPT_WEIGHTS:
            del self.models[next(iter(self.models))]


def _key(model: keras.Model, chosen: dict[str, Any]) -> str:
    """What is compiled into a model's programs: all but the values of its variables."""
    compile_config = model.get_compile_config()
    optimizer = compile_config["optimizer"]["config"]
    del optimizer["name"]
    if isinstance(optimizer["learning_rate"], float):  # else a schedule
        del optimizer["learning_rate"]
    # A configuration does not show all that a function made of what was chosen: of an activation it may have
    # the name alone.
    chosen = {name: value for name, value in chosen.items() if name != "learning_rate"}
    return json.dumps([chosen, model.get_config(), compile_config], default=str)


def _variables(model: keras.Model) -> list[keras.Variable]:
    """All that training changes: weights, the seeds of dropout, the optimizer's variables."""
    return [*model.variables, *model.optimizer.variables]


def values(model: keras.Model) -> list[np.ndarray]:
    # Copies: what a backend hands out may be a variable's own memory.
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in _variables(model)]


def _assign(model: keras.Model, values: list[np.ndarray]) -> None:
    for variable, value in zip(_variables(model), values, strict=True):
        variable.assign(value)
