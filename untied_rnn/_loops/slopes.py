"""Derivatives of activations as functions of their values: all that hand-written gradients need of them."""

from collections.abc import Callable

import keras
from keras import ops

from untied_rnn._types import Tensor

_SLOPES: dict[Callable, Callable[[Tensor], Tensor]] = {
    keras.activations.linear: ops.ones_like,
    keras.activations.tanh: lambda h: 1 - h * h,
    keras.activations.sigmoid: lambda h: h * (1 - h),
    keras.activations.relu: lambda h: ops.cast(h > 0, h.dtype),
}


def slope(activation: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """`f'(a)` for `value = f(a)`, of an activation that `is_known`."""
    return _SLOPES[activation](value)


def is_known(*activations: Callable[[Tensor], Tensor]) -> bool:
    """Whether the slopes of all these activations are functions of their values that are known."""
    return all(activation in _SLOPES for activation in activations)
