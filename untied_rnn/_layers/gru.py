"""`UntiedGRU`: its weights and its step."""

from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from untied_rnn._arguments import KerasObject, LayerArguments
from untied_rnn._layers.affine import AffineRNN
from untied_rnn._loops.gates import Gates, project
from untied_rnn._loops.slopes import is_known, slope
from untied_rnn._types import Activation, Tensor, Tensors
from untied_rnn.sharing import SharingArgument


class _GRUGates(Gates):
    """`h_t = z * h_{t-1} + (1 - z) * g`, where `r` resets what the candidate `g` sees of the state."""

    parts = 3
    only_sum = False
    residuals = 4

    def __init__(self, activation: Activation, recurrent_activation: Activation, reset_after: bool):
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.reset_after, self.biases = reset_after, 2 if reset_after else 1
        # With `reset_after=False` a product stands between the two, and the gradient is plain autodiff.
        self.has_backward = reset_after and is_known(activation, recurrent_activation)

    def project_state(self, p: Tensor, h: Tensor, kernel: Tensor, dropout_mask: Tensor | None) -> Tensor:
        if self.reset_after:
            return super().project_state(p, h, kernel, dropout_mask)
        units = h.shape[-1]
        gates, candidate = (None, None) if dropout_mask is None else (dropout_mask[:2], dropout_mask[2:])
        q = project(h, kernel[:, : 2 * units], gates)
        r = self.recurrent_activation(p[:, units : 2 * units] + q[:, units:])
        return ops.concatenate([q, project(r * h, kernel[:, 2 * units :], candidate)], axis=-1)

    def forward(self, p: Tensor, q: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        (p_z, p_r, p_g), (q_z, q_r, q_g) = ops.split(p, 3, axis=-1), ops.split(q, 3, axis=-1)
        z, r = self.recurrent_activation(p_z + q_z), self.recurrent_activation(p_r + q_r)
        g = self.activation(p_g + (r * q_g if self.reset_after else q_g))
        return [z * before[0] + (1 - z) * g], [z, r, g, q_g]

    def backward(
        self, d_after: Tensors, residuals: Tensors, before: Tensors, after: Tensors
    ) -> tuple[Tensor, Tensor, list[Any]]:
        (d_h,), (z, r, g, q_g) = d_after, residuals
        d_g = d_h * (1 - z) * slope(self.activation, g)
        d_z = d_h * (before[0] - g) * slope(self.recurrent_activation, z)
        d_r = d_g * q_g * slope(self.recurrent_activation, r)
        d_p = ops.concatenate([d_z, d_r, d_g], axis=-1)
        d_q = ops.concatenate([d_z, d_r, d_g * r], axis=-1)
        return d_p, d_q, [d_h * z]


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedGRU(AffineRNN):
    r"""A gated recurrent unit whose weights are separate for every timestep.

    With separate `W`, `U`, `b`, `c` for each timestep `t = 1 .. T`, each in three parts:

    ```
    p_z, p_r, p_g = x_t W_t + b_t
    q_z, q_r, q_g = h_{t-1} U_t + c_t
    z, r = recurrent_activation(p_z + q_z), recurrent_activation(p_r + q_r)
    g = activation(p_g + r * q_g)    (without reset_after: p_g + (r * h_{t-1}) U_g, no c)
    h_t = z * h_{t-1} + (1 - z) * g
    ```

    Drop-in replacement for `keras.layers.GRU`: its arguments have the same order and meaning.

    Args:
        units: Positive integer, the size of the state `h`.
        activation: Activation of the candidate `g`. `None` is linear.
        recurrent_activation: Activation of the gates `z` and `r`.
        use_bias: Whether there are `b` and `c`.
        reset_after: Whether `r` acts after the product with `U_t` or before it, which is slower.
        use_cudnn: `"auto"` or `False`, which are the same: cuDNN's GRU has one weight set for all timesteps.

    Output shape:
        `(batch, units)`, or `(batch, timesteps, units)` with `return_sequences`. With `return_state`, a
        tuple of that and the last state `(batch, units)`.

    Variables:
        With as many weight sets as timesteps, or fewer if they are shared:

        - `kernel`: `W`, `(timesteps, input_dim, 3 * units)`.
        - `recurrent_kernel`: `U`, `(timesteps, units, 3 * units)`.
        - `bias`: `b` and `c`, `(timesteps, 2, 3 * units)`; without `reset_after` only `b`,
          `(timesteps, 3 * units)`.

    Example:

    ```python
    import numpy as np
    from untied_rnn import UntiedGRU
    from untied_rnn.sharing import Periodic

    hours = np.random.random((8, 72, 3)).astype("float32")
    layer = UntiedGRU(16, sharing=Periodic(24))  # weights per hour, any number of days
    assert layer(hours).shape == (8, 16)
    assert layer.recurrent_kernel.shape == (24, 16, 48)
    ```

    References:
        - [Cho et al., 2014, Learning phrase representations using RNN
          encoder-decoder](https://arxiv.org/abs/1406.1078), with one weight set for all timesteps.
    """

    tied_class = keras.layers.GRU

    activation: Activation
    recurrent_activation: Activation
    reset_after: bool

    def __init__(
        self,
        units: int,
        activation: KerasObject | None = "tanh",
        recurrent_activation: KerasObject | None = "sigmoid",
        use_bias: bool = True,
        kernel_initializer: KerasObject = "glorot_uniform",
        recurrent_initializer: KerasObject = "orthogonal",
        bias_initializer: KerasObject = "zeros",
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
        reset_after: bool = True,
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
        self.gates = _GRUGates(self.activation, self.recurrent_activation, self.reset_after)
        self.state_size = [self.units]

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (2, 3 * self.units) if self.reset_after else (3 * self.units,)
