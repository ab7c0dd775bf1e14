"""Regularizers along time."""

from typing import Any

import keras
from keras import ops

from untied_rnn import arguments

Tensor = Any


@keras.saving.register_keras_serializable(package="untied_rnn")
class TimeSmoothness(keras.regularizers.Regularizer):
    r"""Penalises differences between the weights of neighbouring timesteps.

    With `W_s` the weight sets of a layer in their order:

    ```
    penalty = sum_s  l1 * |W_{s+1} - W_s|  +  l2 * (W_{s+1} - W_s)^2        (over all elements)
    ```

    Neighbours are the weight sets of successive timesteps or blocks. With `period` the first set follows the
    last one again; with `weight_index` sets are neighbours in the order of their numbers. The larger `l2`,
    the closer is the layer to a tied one; `l1` lets weights stay as they are for a while and then jump.

    Args:
        l1: Non-negative number, the factor of the absolute differences.
        l2: Non-negative number, the factor of the squared differences.

    Raises:
        TypeError, ValueError: If a factor is no non-negative number.

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

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        self.l1, self.l2 = arguments.check("l1", l1), arguments.check("l2", l2)

    def __call__(self, stack: Tensor) -> Tensor:
        difference = stack[1:] - stack[:-1]
        return self.l1 * ops.sum(ops.abs(difference)) + self.l2 * ops.sum(ops.square(difference))

    def get_config(self) -> dict[str, Any]:
        return {"l1": self.l1, "l2": self.l2}
