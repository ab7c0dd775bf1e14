"""Constructor arguments: checked when they arrive, and written back by `get_config`.

One rule per argument name serves every layer, so that no layer lists its arguments twice.
"""

from collections.abc import Callable
from typing import Any, TypedDict

import keras

from untied_rnn import _checks, sharing

_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "units": _checks.positive_integer,
    "output_units": _checks.optional_positive_integer,
    "timesteps": _checks.optional_positive_integer,
    "frozen_timesteps": _checks.indices,
    "l1": _checks.non_negative_number,
    "l2": _checks.non_negative_number,
    "num_layers": _checks.positive_integer,
    "batch_size": _checks.optional_positive_integer,
    "learning_rate": _checks.positive_number,
    "dropout": _checks.rate,
    "recurrent_dropout": _checks.rate,
    "seed": _checks.seed,
    "use_bias": _checks.boolean,
    "unit_forget_bias": _checks.boolean,
    "reset_after": _checks.boolean,
    "return_sequences": _checks.boolean,
    "return_state": _checks.boolean,
    "go_backwards": _checks.boolean,
    "stateful": _checks.boolean,
    "zero_output_for_mask": _checks.boolean,
    "unroll": _checks.unroll_form,
    "jit_compile": _checks.jit_compile,
    "use_cudnn": _checks.use_cudnn,
    "lora_rank": _checks.absent,
    "lora_alpha": _checks.absent,
    "quantization_config": _checks.absent,
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
    "sharing": sharing,
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
