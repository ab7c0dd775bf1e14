"""`UntiedLSTM`: its weights and its step."""

from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from untied_rnn._arguments import KerasObject, LayerArguments
from untied_rnn._layers.affine import AffineRNN
from untied_rnn._loops.gates import Gates
from untied_rnn._loops.slopes import is_known, slope
from untied_rnn._types import Activation, Constraint, Initializer, Regularizer, Tensor, Tensors
from untied_rnn._weights.draws import UnitForgetBias
from untied_rnn.sharing import Sharing, SharingArgument


class _LSTMGates(Gates):
    """`c_t = f * c_{t-1} + i * g` and `h_t = o * activation(c_t)`."""

    parts = 4
    only_sum = True
    residuals = 5

    def __init__(self, activation: Activation, recurrent_activation: Activation):
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.has_backward = is_known(activation, recurrent_activation)

    def forward(self, p: Tensor, q: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        i, f, g, o = ops.split(p + q, 4, axis=-1)
        i, f, o = (self.recurrent_activation(gate) for gate in (i, f, o))
        g = self.activation(g)
        c = f * before[1] + i * g
        activated = self.activation(c)
        return [o * activated, c], [i, f, g, o, activated]

    def backward(
        self, d_after: Tensors, residuals: Tensors, before: Tensors, after: Tensors
    ) -> tuple[Tensor, Tensor, list[Any]]:
        (d_h, d_c), (i, f, g, o, activated) = d_after, residuals
        d_c = d_c + d_h * o * slope(self.activation, activated)
        d_i, d_f, d_g, d_o = d_c * g, d_c * before[1], d_c * i, d_h * activated
        d_i, d_f, d_o = (
            d * slope(self.recurrent_activation, gate) for d, gate in ((d_i, i), (d_f, f), (d_o, o))
        )
        delta = ops.concatenate([d_i, d_f, d_g * slope(self.activation, g), d_o], axis=-1)
        return delta, delta, [0, d_c * f]


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedLSTM(AffineRNN):
    r"""A long short-term memory whose weights are separate for every timestep.

    With separate `W`, `U`, `b` for each timestep `t = 1 .. T`, each in four parts:

    ```
    p_i, p_f, p_g, p_o = x_t W_t + h_{t-1} U_t + b_t
    i = recurrent_activation(p_i)
    f = recurrent_activation(p_f)
    o = recurrent_activation(p_o)
    g = activation(p_g)
    c_t = f * c_{t-1} + i * g
    h_t = o * activation(c_t)
    ```

    Drop-in replacement for `keras.layers.LSTM`: its arguments have the same order and meaning.

    Args:
        units: Positive integer, the size of the states `h` and `c`.
        activation: Activation of `g` and of `c_t`. `None` is linear.
        recurrent_activation: Activation of the gates `i`, `f` and `o`.
        use_bias: Whether there is a `b`.
        unit_forget_bias: Whether the biases of `f` start as ones.
        use_cudnn: `"auto"` or `False`, which are the same: cuDNN's LSTM has one weight set for all timesteps.

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

    activation: Activation
    recurrent_activation: Activation
    unit_forget_bias: bool

    def __init__(
        self,
        units: int,
        activation: KerasObject | None = "tanh",
        recurrent_activation: KerasObject | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: KerasObject = "glorot_uniform",
        recurrent_initializer: KerasObject = "orthogonal",
        bias_initializer: KerasObject = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: KerasObject | None = None,
        recurrent_regularizer: KerasObject | None = None,
        bias_regularizer: KerasObject | None = None,
        activity_regularizer: KerasObject | None = None,
        kernel_constraint: KerasObject | None = None,
        recurrent_constraint: KerasObject | None = None,
        bias_constraint: KerasObject | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool | int | str = "auto",
        use_cudnn: bool | str = "auto",
        *,
        timesteps: int | None = None,
        sharing: SharingArgument = "untied",
        kernel_sharing: SharingArgument | None = None,
        recurrent_sharing: SharingArgument | None = None,
        bias_sharing: SharingArgument | None = None,
        frozen_timesteps: Sequence[int] | None = None,
        zero_output_for_mask: bool = False,
        jit_compile: bool | str = "auto",
        **kwargs: Unpack[LayerArguments],
    ):
        super().__init__(locals())
        self.gates = _LSTMGates(self.activation, self.recurrent_activation)
        self.state_size = [self.units, self.units]

    def options_of(self, role: str) -> tuple[Initializer, Regularizer | None, Constraint | None, Sharing]:
        initializer, regularizer, constraint, sharing = super().options_of(role)
        if role == "bias" and self.unit_forget_bias:
            initializer = UnitForgetBias(initializer)
        return initializer, regularizer, constraint, sharing
