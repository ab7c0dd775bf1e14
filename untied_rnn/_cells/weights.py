"""What the weights of a cell are drawn from, for every weight set anew."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn._cells import pure as cells
from untied_rnn._types import Initializer, Tensor
from untied_rnn._weights.draws import (
    StackInitializer,
    UnitForgetBias,
    initializer_at,
    is_drawn_in_one_pass,
    is_elementwise,
)

_ADD_WEIGHT = inspect.signature(keras.Layer.add_weight)


class CellWeights:
    """Builds a cell, and says what each of its weights is drawn from.

    Weights that Keras's own initializers draw are drawn without further cells, in one pass: the cells of
    3,136 weight sets took 20 s to build.

    Args:
        template: The cell, which is not built.
        build: Builds a cell.
        another: Makes a cell like the template, not built; `None` if it cannot.
    """

    def __init__(
        self,
        template: keras.Layer,
        build: Callable[[keras.Layer], None],
        another: Callable[[], keras.Layer | None],
    ):
        self.template, self.build, self.another = template, build, another
        self.weights: dict[int, list[np.ndarray]] = {}
        self.created: list[keras.Variable] = []
        # By the id of each weight of the template. One that the cell assigns values to has none.
        self.initializers: dict[int, Any] = {}
        # A subclass may draw from something else than it is asked to.
        recorded = [v for v in cells.layers(template) if type(v).add_weight is keras.Layer.add_weight]
        for layer in recorded:
            layer.add_weight = functools.partial(self._add_weight, layer, layer.add_weight)
        build(template)
        for layer in recorded:
            del layer.add_weight  # the instance's, not the class's
        for weight in self.created:
            del weight.assign

    def initializer(self, i: int) -> Initializer:
        """What the `i`-th weight is drawn from."""
        initializer = self.initializers.get(id(self.template.weights[i]))
        if initializer is None:
            return _CellInitializer(self, i)
        # Within a cell, an initializer may be part of another, whose seed is to change from set to set.
        by_itself = is_drawn_in_one_pass(initializer) or self.another() is None
        return initializer if by_itself else _CellInitializer(self, i)

    def weight(self, weight_set: int, i: int) -> np.ndarray:
        """The `i`-th weight of the cell of one weight set, which is built once."""
        if weight_set not in self.weights:
            cell = self.another()
            if cell is None:
                raise ValueError(
                    f"The cell gives '{self.template.weights[i].path}' its values itself, or makes it in its "
                    "constructor, so that each weight set takes a copy of the cell. Expected a cell with "
                    "`get_config`, which returns the arguments of its constructor. "
                    f"Received: cell={self.template!r}"
                )
            for layer in cells.layers(cell):
                for name, value in vars(layer).items():
                    if isinstance(value, keras.initializers.Initializer):
                        setattr(layer, name, initializer_at(value, weight_set))
            with cells.outside_of_functions():
                self.build(cell)
                self.weights[weight_set] = [ops.convert_to_numpy(w) for w in cell.weights]
        return self.weights[weight_set][i]

    def _add_weight(
        self, layer: keras.Layer, add_weight: Callable[..., keras.Variable], *args: Any, **options: Any
    ) -> keras.Variable:
        """`layer.add_weight`, recorded."""
        weight = add_weight(*args, **options)
        options = _ADD_WEIGHT.bind(layer, *args, **options).arguments
        default = "glorot_uniform" if keras.backend.is_float_dtype(weight.dtype) else "zeros"  # Keras's
        initializer = keras.initializers.get(options.get("initializer") or default)
        if _is_unit_forget_bias(layer, options.get("name")) and is_elementwise(layer.bias_initializer):
            initializer = UnitForgetBias(layer.bias_initializer)
        self.initializers[id(weight)] = initializer
        assign = weight.assign

        def noted(value: Tensor) -> Tensor:
            self.initializers[id(weight)] = None
            return assign(value)

        weight.assign = noted
        self.created.append(weight)
        return weight


class _CellInitializer(StackInitializer):
    """Takes the values of the `i`-th weight from cells."""

    def __init__(self, weights: CellWeights, i: int):
        self.weights, self.i = weights, i

    def draw(self, sets: np.ndarray, total: int, shape: tuple[int, ...], dtype: str | None) -> Tensor:
        return ops.stack([ops.convert_to_tensor(self.weights.weight(int(s), self.i), dtype) for s in sets])


def _is_unit_forget_bias(layer: keras.Layer, name: str | None) -> bool:
    """Whether Keras draws a weight from a function within `LSTMCell.build`, which no one else can call."""
    return type(layer).build is keras.layers.LSTMCell.build and layer.unit_forget_bias and name == "bias"
