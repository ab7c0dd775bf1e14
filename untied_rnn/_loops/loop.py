"""What a loop over time is, for every backend."""

from collections.abc import Callable
from dataclasses import dataclass

from untied_rnn._types import Index, Tensors

# `step(carry, x_t, w_t) -> (carry, y_t, sums_t)`: a pure function of lists of tensors that captures none.
# `sums_t` are gradients of the first weights, as many as the loop says.
ListStep = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors, Tensors]]


@dataclass(frozen=True)
class Loop:
    """The order of the timesteps, and the weights that they use.

    Attributes:
        indices: For each weight the place in its stack that timestep `t` uses; `None` is `t`.
        sums: How many gradients of the first weights a step returns. Each is added up over the timesteps of
            its set, in the dtype of the weights: in 16 bits a sum of ones ends at 256.
        reverse: Whether to run from the last timestep to the first.
        steps_per_iteration: How many timesteps one iteration runs.
    """

    indices: tuple[Index | None, ...]
    sums: int
    reverse: bool
    steps_per_iteration: int
