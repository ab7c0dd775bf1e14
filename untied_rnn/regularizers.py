"""Regularizers along time."""

from typing import Any

import keras
from keras import ops

from untied_rnn import _arguments
from untied_rnn._types import Tensor


def in_single_precision(stack: Tensor) -> Tensor:
    """The stack in at least float32: in bfloat16, a sum of ones over all timesteps would end at 256."""
    stack = ops.convert_to_tensor(stack)
    short = keras.backend.standardize_dtype(stack.dtype) in ("float16", "bfloat16")
    return ops.cast(stack, "float32") if short else stack


@keras.saving.register_keras_serializable(package="untied_rnn")
class TimeSmoothness(keras.regularizers.Regularizer):
    r"""Penalises differences between the weights of neighbouring timesteps.

    With `W_s` the weight sets of a layer in their order:

    ```
    penalty = sum_s  l1 * |W_{s+1} - W_s|  +  l2 * (W_{s+1} - W_s)^2    (all elements)
    ```

    Neighbours are the weight sets of successive timesteps or blocks. With `Periodic` the first set follows
    the last one again; with `Listed` sets are neighbours in the order of their numbers. Sharings of several
    parameters make the weights of all timesteps, and the penalty is taken of these. With one weight set, as
    `Tied` has, it is zero. The larger `l2`, the closer is the layer to a tied one; `l1` lets weights stay as
    they are for a while and then jump.

    Args:
        l1: Non-negative number, the factor of the absolute differences; 0 if only `l2` is given.
        l2: Non-negative number, the factor of the squared differences; 0 if only `l1` is given.

    Raises:
        TypeError, ValueError: If a factor is no non-negative number, or none is given; if it regularizes a
            weight without an axis of weight sets, such as one of `keras.layers.GRU`.

    Example:

    ```python
    from untied_rnn import UntiedSimpleRNN
    from untied_rnn.regularizers import TimeSmoothness

    layer = UntiedSimpleRNN(8, timesteps=12, recurrent_regularizer=TimeSmoothness(l2=0.1))
    ```

    References:
        - [Tibshirani et al., 2005, Sparsity and smoothness via the fused
          lasso](https://doi.org/10.1111/j.1467-9868.2005.00490.x), the penalty with `l1`.
    """

    def __init__(self, l1: float | None = None, l2: float | None = None):
        if l1 is None and l2 is None:
            raise ValueError("Expected `l1`, `l2` or both. Received neither, which would penalise nothing")
        self.l1, self.l2 = _arguments.check("l1", l1 or 0.0), _arguments.check("l2", l2 or 0.0)

    def __call__(self, stack: Tensor) -> Tensor:
        # A tied layer hands over its weight, whose first axis is the features.
        if isinstance(stack, keras.Variable) and not getattr(stack, "is_timestep_stack", False):
            raise ValueError(
                "`TimeSmoothness` expected the weights of an untied layer, with an axis of timesteps. "
                f"Received: '{stack.path}' of shape {tuple(stack.shape)}"
            )
        stack = in_single_precision(stack)
        difference = stack[1:] - stack[:-1]
        return self.l1 * ops.sum(ops.abs(difference)) + self.l2 * ops.sum(ops.square(difference))

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}
