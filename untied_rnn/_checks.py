"""Checks of arguments, each of which takes the argument's name and value and returns the value or raises."""

import math
import numbers
from collections.abc import Callable
from typing import Any


def positive_integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if value <= 0:
        raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    return int(value)


def optional_positive_integer(name: str, value: Any) -> int | None:
    return None if value is None else positive_integer(name, value)


def number(kind: str, fits: Callable[[float], bool]) -> Callable[[str, Any], float]:
    """The check of a number of some kind, which `fits`."""

    def checked(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"`{name}` must be a {kind}. Received: {name}={value!r}")
        if not fits(float(value)):
            raise ValueError(f"`{name}` must be a {kind}. Received: {name}={value!r}")
        return float(value)

    return checked


rate = number("number between 0 and 1", lambda x: 0 <= x <= 1)
positive_number = number("positive number", lambda x: 0 < x < math.inf)
non_negative_number = number("number that is not negative", lambda x: 0 <= x < math.inf)


def indices(name: str, value: Any) -> list[int] | None:
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


def set_numbers(name: str, value: Any) -> list[int] | None:
    found = indices(name, value)
    if found is not None and sorted(set(found)) != list(range(len(set(found)) or 1)):
        raise ValueError(
            f"`{name}` must use every weight set from 0 to the largest one. Received: {name}={value!r}"
        )
    return found


def integer_from_0(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer from 0. Received: {name}={value!r}")
    if value < 0:
        raise ValueError(f"`{name}` must be an integer from 0. Received: {name}={value!r}")
    return int(value)


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, numbers.Integral) or value not in (0, 1):
        raise TypeError(f"`{name}` must be `True` or `False`. Received: {name}={value!r}")
    return bool(value)


def unroll_form(name: str, value: Any) -> bool | int | str:
    if isinstance(value, bool) or value == "auto":
        return value
    if isinstance(value, str):
        raise ValueError(
            f'`{name}` must be "auto", `True`, `False` or a positive integer. Received: {name}={value!r}'
        )
    return positive_integer(name, value)


def jit_compile(name: str, value: Any) -> bool | str:
    if isinstance(value, bool) or value == "auto":
        return value
    raise ValueError(f'`{name}` must be "auto", `True` or `False`. Received: {name}={value!r}')


def use_cudnn(name: str, value: Any) -> bool | str:
    if value is False or value == "auto":
        return value
    raise ValueError(
        f'`{name}` must be "auto" or `False`, since cuDNN has one weight set for all timesteps. '
        f"Received: {name}={value!r}"
    )


def absent(name: str, value: Any) -> None:
    if value is not None:
        raise ValueError(f"`{name}` must be `None` for untied layers. Received: {name}={value!r}")


def seed(name: str, value: Any) -> int | None:
    if value is None or isinstance(value, numbers.Integral):
        return None if value is None else int(value)
    raise TypeError(f"`{name}` must be an integer or `None`. Received: {name}={value!r}")
