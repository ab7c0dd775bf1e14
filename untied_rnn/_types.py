"""Names for the types of arguments, of which Python knows too little: every backend has its own tensors."""

from collections.abc import Callable
from typing import Any

Tensor = Any
Tensors = list[Tensor]
# A tensor, or lists, tuples, named tuples and dictionaries of tensors.
Nested = Any
Shape = tuple[int | None, ...]
# The weight set that a timestep uses: of integers as Python has them, NumPy or a tensor, so that loops and
# graphs can ask as well.
Index = Callable[[Any], Any]

Activation = Callable[[Tensor], Tensor]
Initializer = Callable[..., Tensor]
Regularizer = Callable[[Tensor], Tensor]
Constraint = Callable[[Tensor], Tensor]
