"""`UntiedLSTM`: its weights and its step."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn import arguments
from untied_rnn.affine_rnn import AffineRNN
from untied_rnn.arguments import KerasObject
from untied_rnn.draws import StackInitializer, draw
from untied_rnn.layer import Tensor
from untied_rnn.recurrence import Activation, Gates
from untied_rnn.slopes import is_known, slope


class _LSTMGates(Gates):
    """`c_t = f * c_{t-1} + i * g` and `h_t = o * activation(c_t)`."""

    parts = 4
    only_sum = True
    saved = 5

    def __init__(self, activation: Activation, recurrent_activation: Activation):
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.has_backward = is_known(activation, recurrent_activation)

    def forward(self, p: Tensor, q: Tensor, before: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        i, f, g, o = ops.split(p + q, 4, axis=-1)
        i, f, o = (self.recurrent_activation(gate) for gate in (i, f, o))
        g = self.activation(g)
        c = f * before[1] + i * g
        activated = self.activation(c)
        return [o * activated, c], [i, f, g, o, activated]

    def backward(
        self, d_after: list[Tensor], saved: list[Tensor], before: list[Tensor], after: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Any]]:
        (d_h, d_c), (i, f, g, o, activated) = d_after, saved
        d_c = d_c + d_h * o * slope(self.activation, activated)
        d_i, d_f, d_g, d_o = d_c * g, d_c * before[1], d_c * i, d_h * activated
        d_i, d_f, d_o = (
            d * slope(self.recurrent_activation, gate) for d, gate in ((d_i, i), (d_f, f), (d_o, o))
        )
        delta = ops.concatenate([d_i, d_f, d_g * slope(self.activation, g), d_o], axis=-1)
        return delta, delta, [0, d_c * f]


class UnitForgetBias(StackInitializer):
    """An initializer, but ones for the forget gate, so that a cell remembers from the start."""

    def __init__(self, initializer: Callable[..., Tensor]):
        self.initializer = initializer

    def draw(self, sets: np.ndarray, total: int, shape: tuple[int, ...], dtype: str | None) -> Tensor:
        i, f, g, o = ops.split(draw(self.initializer, sets, total, shape, dtype), 4, axis=-1)
        return ops.concatenate([i, ops.ones_like(f), g, o], axis=-1)


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedLSTM(AffineRNN):
    r"""A long short-term memory whose weights are separate for every timestep.

    With separate `W`, `U`, `b` for each timestep `t = 1 .. T`, each in four parts:

    ```
    i, f, g, o = x_t W_t + h_{t-1} U_t + b_t             (recurrent_activation of i, f, o; activation of g)
    c_t = f * c_{t-1} + i * g
    h_t = o * activation(c_t)
    ```

    Drop-in replacement for `keras.layers.LSTM`: shared arguments have the same meaning. There is no
    `use_cudnn`, since cuDNN's LSTM is a tied one.

    Args:
        units: Positive integer, the size of the states `h` and `c`.
        activation: Activation of `g` and of `c_t`. `None` is linear.
        recurrent_activation: Activation of the gates `i`, `f` and `o`.
        use_bias: Whether there is a `b`.
        unit_forget_bias: Whether the biases of `f` start as ones.
        **kwargs: Arguments of the base classes.

    Output shape:
        `(batch, units)`, or `(batch, timesteps, units)` with `return_sequences`. With `return_state`, a
        tuple of that, `h` and `c`, both `(batch, units)`.

    Variables:
        With as many weight sets as timesteps, or fewer if they are shared:

        - `kernel`: `W`, `(timesteps, input_dim, 4 * units)`.
        - `recurrent_kernel`: `U`, `(timesteps, units, 4 * units)`.
        - `bias`: `b`, `(timesteps, 4 * units)`.

    Example:

    ```python
    import numpy as np
    from untied_rnn import UntiedLSTM

    rows = np.random.random((32, 28, 28)).astype("float32")
    output, h, c = UntiedLSTM(50, return_state=True)(rows)
    assert output.shape == h.shape == c.shape == (32, 50)
    ```

    References:
        - [Hochreiter and Schmidhuber, 1997, Long short-term
          memory](https://doi.org/10.1162/neco.1997.9.8.1735), with one weight set for all timesteps.
        - [Gers et al., 2000, Learning to forget](https://doi.org/10.1162/089976600300015015), the forget
          gate.
    """

    tied_class = keras.layers.LSTM

    def __init__(
        self,
        units: int,
        timesteps: int | None = None,
        activation: KerasObject | None = "tanh",
        recurrent_activation: KerasObject | None = "sigmoid",
        use_bias: bool = True,
        unit_forget_bias: bool = True,
        **kwargs: Any,
    ):
        received = dict(locals())
        super().__init__(units, timesteps, use_bias, **kwargs)
        arguments.store(self, UntiedLSTM.__init__, received)
        self.gates = _LSTMGates(self.activation, self.recurrent_activation)
        self.state_size = [self.units, self.units]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **arguments.config(self, UntiedLSTM.__init__)}

    def initializer_of(self, role: str) -> Callable[..., Tensor]:
        initializer = super().initializer_of(role)
        return UnitForgetBias(initializer) if role == "bias" and self.unit_forget_bias else initializer
