"""What every sharing is: parameters, and the weight that a timestep makes of what it reads of them."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from untied_rnn._loops.batched import Reading
from untied_rnn._types import Initializer, Tensor
from untied_rnn._weights.sets import Sets


class Parameter(NamedTuple):
    """A variable that weights are made of.

    Attributes:
        shape: Shape of what one timestep reads.
        sharing: Which timesteps read the same.
        initializer: Initializer of what one timestep reads.
    """

    shape: tuple[int, ...]
    sharing: "SetSharing"
    initializer: Initializer


class Sharing:
    """Base class of all sharings.

    ```
    W_t = weight(*what timestep t reads of each parameter)
    ```

    A subclass defines `parameters` and `weight`. As a frozen dataclass it gets its configuration written by
    `get_config`; with `keras.saving.register_keras_serializable` models with it can be loaded.
    """

    def parameters(
        self, shape: tuple[int, ...], timesteps: int | None, initializer: Initializer
    ) -> dict[str, Parameter | np.ndarray]:
        """What a weight is made of.

        Args:
            shape: Shape of the weight of one timestep.
            timesteps: Number of timesteps that the layer has weights for; `None` if any.
            initializer: What the layer draws the weight of one timestep from.

        Returns:
            Parameters by name. The variable of a layer's `kernel` is called `kernel` for the name `""`, and
            `kernel_a` for `"a"`. An array `(timesteps, ...)` holds constants, of which a timestep reads its
            own.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `parameters`.")

    def weight(self, *parts: Tensor) -> Tensor:
        """The weight of a timestep.

        Args:
            *parts: What the timestep reads of each parameter, in their order.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `weight`.")

    def fit(self, weights: np.ndarray, start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The parameters whose weights are closest to given ones, for layers that are made from others.

        Args:
            weights: `(timesteps, ...)`, the weight of each timestep.
            start: The parameters of the new layer, `(sets, ...)` by name. They are copied from the layer that
                the weights are from, where it has parameters of the same shape, and drawn otherwise.

        Returns:
            Arrays of the same names and shapes.
        """
        raise NotImplementedError(
            "Expected a sharing with `fit`, which finds parameters for the weights of another layer. "
            f"Received: {self!r}"
        )

    def along_time(self, length: Any, *readings: Reading) -> Tensor:
        """The weights of the first timesteps, `(length, ...)`, for layers without a loop and for biases."""
        parts = [reading.along_time(length) for reading in readings]
        return ops.vectorized_map(lambda parts: self.weight(*parts), parts)

    def product(self, x: Tensor, *readings: Reading) -> Tensor:
        """`x_t W_t` for all timesteps at once, for layers without a loop; `x` is `(timesteps, batch, rows)`.

        To be defined where it can be had without a matrix for each timestep.
        """
        return ops.matmul(x, ops.cast(self.along_time(ops.shape(x)[0], *readings), x.dtype))

    @property
    def timesteps(self) -> int | None:
        """The number of timesteps that this is made for; `None` if any number will do."""
        return None

    @property
    def any_length(self) -> bool:
        """Whether a layer needs no `timesteps`, and takes sequences of any length."""
        return False

    def get_config(self) -> dict[str, Any]:
        if not dataclasses.is_dataclass(self):
            return {}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: keras.saving.serialize_keras_object(value) for name, value in values.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sharing":
        return cls(**{name: keras.saving.deserialize_keras_object(v) for name, v in config.items()})


class SetSharing(Sharing):
    """Base class of sharings in which a timestep uses one of several weights as it is."""

    def sets(self, timesteps: int | None) -> Sets:
        """Which weight a timestep uses."""
        raise NotImplementedError(f"{type(self).__name__} must define `sets`.")

    def parameters(
        self, shape: tuple[int, ...], timesteps: int | None, initializer: Initializer
    ) -> dict[str, Parameter | np.ndarray]:
        return {"": Parameter(shape, self, initializer)}

    def weight(self, *parts: Tensor) -> Tensor:
        (weight,) = parts
        return weight

    def fit(self, weights: np.ndarray, start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The means over the timesteps of each set."""
        found = self.sets(len(weights)).index(np.arange(len(weights)))
        if missing := sorted(set(range(len(start[""]))) - set(found.tolist())):
            raise ValueError(
                f"Expected a timestep for each weight set, of {len(weights)} timesteps. "
                f"Received: {self!r}, whose weight sets {missing} none of them uses"
            )
        return {"": np.stack([mean(weights[found == s]) for s in range(len(start[""]))])}

    def along_time(self, length: Any, *readings: Reading) -> Tensor:
        (weight,) = readings
        return weight.along_time(length)

    def product(self, x: Tensor, *readings: Reading) -> Tensor:
        (weight,) = readings
        return weight.product(x)


# What an argument for a sharing may be: itself, its name or its configuration; or, for the weights of a cell,
# a dictionary of these by name.
SharingArgument = Sharing | str | dict[str, Any]


def get(identifier: Any) -> Any:
    """The sharing for a name (`"tied"`), a configuration or itself; for a dictionary of these, each.

    Raises:
        TypeError, ValueError: If it is none of them.
    """
    if identifier is None or isinstance(identifier, Sharing):
        return identifier
    if isinstance(identifier, Mapping):
        if "class_name" in identifier:
            return keras.saving.deserialize_keras_object(identifier)
        return {name: get(value) for name, value in identifier.items()}
    named = keras.saving.get_registered_object(f"untied_rnn>{str(identifier).title()}")
    if isinstance(identifier, str) and named is not None and not inspect.signature(named).parameters:
        return named()
    raise TypeError(
        "Expected a sharing, such as `untied_rnn.sharing.Blocks(7)`, or the name of one without arguments, "
        f'"untied" or "tied". Received: {identifier!r}'
    )


def serialize(sharing: Any) -> Any:
    """The configuration of a sharing, or of a dictionary of sharings."""
    if isinstance(sharing, Mapping):
        return {name: serialize(value) for name, value in sharing.items()}
    return keras.saving.serialize_keras_object(sharing)


def mean(weights: np.ndarray) -> np.ndarray:
    """Over the first axis. Exact where all are equal."""
    # In double precision, for NumPy would add up bfloat16 in bfloat16.
    first, differences = weights[0], weights.astype("float64") - weights[0].astype("float64")
    return (first + differences.mean(axis=0)).astype(weights.dtype)
