"""Constructor arguments: checked when they arrive, and written back by `get_config`.

One rule per argument name serves every layer, so that no layer lists its arguments twice.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, TypedDict

import keras


def positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if value <= 0:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def _optional_positive_integer(name: str, value: Any) -> int | None:
    return None if value is None else positive_integer(name, value)


def _number(kind: str, fits: Callable[[float], bool]) -> Callable[[str, Any], float]:
    """The check of a number of some kind, which `fits`."""

    def checked(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"`{name}` must be a {kind}. Received: {name}={value!r}")
        if not fits(float(value)):
            raise ValueError(f"`{name}` must be a {kind}. Received: {name}={value!r}")
        return float(value)

    return checked


_rate = _number("number between 0 and 1", lambda x: 0 <= x <= 1)
_positive_number = _number("positive number", lambda x: 0 < x < math.inf)
_non_negative_number = _number("number that is not negative", lambda x: 0 <= x < math.inf)


def _indices(name: str, value: Any) -> list[int] | None:
    """Integers from 0."""
    if value is None:
        return None
    try:
        found = list(value)
    except TypeError:
        found = [None]
    if isinstance(value, (str, dict)) or not all(
        isinstance(i, numbers.Integral) and not isinstance(i, bool) for i in found
    ):
        raise TypeError(f"`{name}` must be a list of integers. Received: {name}={value!r}")
    if any(i < 0 for i in found):
        raise ValueError(f"`{name}` must be a list of integers from 0. Received: {name}={value!r}")
    return [int(i) for i in found]


def _weight_index(name: str, value: Any) -> list[int] | None:
    found = _indices(name, value)
    if found is not None and sorted(set(found)) != list(range(len(set(found)) or 1)):
        raise ValueError(
            f"`{name}` must use every weight set from 0 to the largest one. Received: {name}={value!r}"
        )
    return found


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, numbers.Integral) or value not in (0, 1):
        raise TypeError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}")
    return bool(value)


def _unroll(name: str, value: Any) -> bool | int | str:
    if isinstance(value, bool) or value == "auto":
        return value
    if isinstance(value, str):
        raise ValueError(
            f'`{name}` must be "auto", `True`, `False` or a positive integer. Received: {name}={value!r}'
        )
    return positive_integer(name, value)


def _jit_compile(name: str, value: Any) -> bool | str:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError(f'`{name}` must be "auto", `True` or `False`. Received: {name}={value!r}')


def _use_cudnn(name: str, value: Any) -> bool | str:
    if value is False or value == "auto":
        return value
    raise ValueError(
        f'`{name}` must be "auto" or `False`, since cuDNN has one weight set for all timesteps. '
        f"Received: {name}={value!r}"
    )


def _absent(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"`{name}` must be `None` for untied layers. Received: {name}={value!r}")


def _seed(name: str, value: Any) -> int | None:
    if value is None or isinstance(value, numbers.Integral):
        return None if value is None else int(value)
    raise TypeError(f"`{name}` must be an integer or `None`. Received: {name}={value!r}")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "units": positive_integer,
    "output_units": _optional_positive_integer,
    "timesteps": _optional_positive_integer,
    "block_size": _optional_positive_integer,
    "period": _optional_positive_integer,
    "weight_index": _weight_index,
    "frozen_timesteps": _indices,
    "l1": _non_negative_number,
    "l2": _non_negative_number,
    "num_layers": positive_integer,
    "batch_size": _optional_positive_integer,
    "learning_rate": _positive_number,
    "dropout": _rate,
    "recurrent_dropout": _rate,
    "seed": _seed,
    "use_bias": _boolean,
    "unit_forget_bias": _boolean,
    "reset_after": _boolean,
    "return_sequences": _boolean,
    "return_state": _boolean,
    "go_backwards": _boolean,
    "stateful": _boolean,
    "zero_output_for_mask": _boolean,
    "unroll": _unroll,
    "jit_compile": _jit_compile,
    "use_cudnn": _use_cudnn,
    "lora_rank": _absent,
    "lora_alpha": _absent,
    "quantization_config": _absent,
}

# What an argument for a Keras object may be: its name, its configuration or itself.
KerasObject = str | dict[str, Any] | Callable[..., Any]


class LayerArguments(TypedDict, total=False):
    """The arguments of `keras.Layer` that every layer takes."""

    name: str | None
    dtype: str | keras.DTypePolicy | None
    trainable: bool
    autocast: bool


# Arguments whose name ends in one of these are Keras objects, given as object, name or config.
_KERAS_MODULES = {
    "activation": keras.activations,
    "initializer": keras.initializers,
    "regularizer": keras.regularizers,
    "constraint": keras.constraints,
    "optimizer": keras.optimizers,
}


def _keras_module(name: str) -> Any:
    return _KERAS_MODULES.get(name.rsplit("_", 1)[-1])


def check(name: str, value: Any) -> Any:
    """`value` as what the argument `name` takes: a number, or a Keras object for its name."""
    module = _keras_module(name)
    return module.get(value) if module else _CHECKS[name](name, value)


def store(layer: keras.Layer, received: dict[str, Any]) -> list[str]:
    """Sets arguments as checked attributes of `layer`.

    Args:
        layer: The layer under construction, after `keras.Layer.__init__`.
        received: Its constructor's arguments, with their names.

    Returns:
        The names of the arguments.
    """
    for name, value in received.items():
        setattr(layer, name, check(name, value))
    return list(received)


def config(layer: keras.Layer, names: list[str]) -> dict[str, Any]:
    """The arguments of these names as they stand on `layer`, ready for JSON."""
    values = {name: getattr(layer, name) for name in names}
    return {
        name: module.serialize(value) if value is not None and (module := _keras_module(name)) else value
        for name, value in values.items()
    }
