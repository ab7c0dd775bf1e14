"""`UntiedSimpleRNN`: its weights and its step."""

from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from untied_rnn._arguments import KerasObject, LayerArguments
from untied_rnn._layers.affine import AffineRNN
from untied_rnn._layers.recurrent import Sequences
from untied_rnn._loops.compilation import WrittenOut
from untied_rnn._loops.gates import Gates
from untied_rnn._loops.slopes import is_known, slope
from untied_rnn._types import Activation, Tensor, Tensors
from untied_rnn._weights.weights import affine, affine_at
from untied_rnn.sharing import SharingArgument


class _Activation(Gates):
    """`h_t = f(p + q)`."""

    parts = 1
    only_sum = True

    def __init__(self, activation: Activation):
        self.activation = activation
        self.has_backward = is_known(activation)

    def forward(self, p: Tensor, q: Tensor, before: Tensors) -> tuple[Tensors, Tensors]:
        return [self.activation(p + q)], []

    def backward(
        self, d_after: Tensors, residuals: Tensors, before: Tensors, after: Tensors
    ) -> tuple[Tensor, Tensor, list[Any]]:
        delta = d_after[0] * slope(self.activation, after[0])
        return delta, delta, [0]


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedSimpleRNN(AffineRNN):
    r"""A fully-connected RNN whose weights are separate for every timestep.

    With separate `W`, `U`, `b` (and `V`, `c`) for each timestep `t = 1 .. T`:

    ```
    h_t = activation(x_t W_t + h_{t-1} U_t + b_t)
    y_t = output_activation(h_t V_t + c_t)            (with output_units)
    ```

    Drop-in replacement for `keras.layers.SimpleRNN`: its arguments have the same order and meaning.

    Args:
        units: Positive integer, the size of the state `h`.
        activation: Activation of the state. `None` is linear.
        use_bias: Whether there are `b` and, with `output_units`, `c`.
        output_units: Positive integer, the size of the output `y`; `None` outputs the state.
        output_activation: Activation of the output. `None` is linear.
        output_initializer: Initializer of each `V_t`, of shape `(units, output_units)`.
        output_regularizer: Regularizer of each `V_t`.
        output_constraint: Constraint on each `V_t` by itself. Each `c_t` is treated as a `b_t`.
        output_sharing: The sharing of `V` alone, in place of `sharing`.

    Output shape:
        `(batch, features)`, or `(batch, timesteps, features)` with `return_sequences`, where
        `features` is `output_units` or else `units`. With `return_state`, a tuple of that and the
        last state `(batch, units)`.

    Variables:
        With as many weight sets as timesteps, or fewer if they are shared:

        - `kernel`: `W`, `(timesteps, input_dim, units)`.
        - `recurrent_kernel`: `U`, `(timesteps, units, units)`.
        - `bias`: `b`, `(timesteps, units)`.
        - `output_kernel`: `V`, `(timesteps, units, output_units)`.
        - `output_bias`: `c`, `(timesteps, output_units)`.

    Example:

    ```python
    import numpy as np
    from untied_rnn import UntiedSimpleRNN

    rows = np.random.random((32, 28, 28)).astype("float32")
    layer = UntiedSimpleRNN(50, output_units=10, return_state=True)
    output, state = layer(rows)
    assert output.shape == (32, 10) and state.shape == (32, 50)
    assert layer.recurrent_kernel.shape == (28, 50, 50)
    ```

    References:
        - [Elman, 1990, Finding structure in time](https://doi.org/10.1207/s15516709cog1402_1), the
          recurrence with one weight set for all timesteps.
        - [Gregor and LeCun, 2010, Learning fast approximations of sparse
          coding](https://icml.cc/Conferences/2010/papers/449.pdf), where unfolding an algorithm led
          to recurrences whose weights may differ between steps.
    """

    tied_class = keras.layers.SimpleRNN
    # Measured on 2 cores: written out, a training step takes 0.8 to 0.95 of the loop's time under XLA, at 28
    # timesteps of 50 and 256 units and at 16 of 500; 100 of 512 units took 25 seconds to compile. In a plain
    # graph it takes 0.65 to 0.85 at 28 to 200 timesteps, and the first call 23 ms more for each timestep.
    few_timesteps = WrittenOut(xla=32, graph=128, eager=32)

    activation: Activation
    output_units: int | None
    output_activation: Activation

    def __init__(
        self,
        units: int,
        activation: KerasObject | None = "tanh",
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
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool | int | str = "auto",
        seed: int | None = None,
        *,
        timesteps: int | None = None,
        sharing: SharingArgument = "untied",
        kernel_sharing: SharingArgument | None = None,
        recurrent_sharing: SharingArgument | None = None,
        bias_sharing: SharingArgument | None = None,
        output_sharing: SharingArgument | None = None,
        frozen_timesteps: Sequence[int] | None = None,
        output_units: int | None = None,
        output_activation: KerasObject | None = None,
        output_initializer: KerasObject = "glorot_uniform",
        output_regularizer: KerasObject | None = None,
        output_constraint: KerasObject | None = None,
        zero_output_for_mask: bool = False,
        jit_compile: bool | str = "auto",
        **kwargs: Unpack[LayerArguments],
    ):
        super().__init__(locals())
        self.gates = _Activation(self.activation)
        self.state_size = [self.units]
        self.output_size = self.output_units or self.units

    def build_weights(self, step_shape: tuple[int, ...]) -> None:
        super().build_weights(step_shape)
        if self.output_units:
            shape = (self.units, self.output_units)
            add, options_of = self.add_timestep_weight, self.options_of
            self.output_kernel = add("output_kernel", shape, *options_of("output"))
            self.output_bias = add("output_bias", shape[1:], *options_of("bias")) if self.use_bias else None

    def recurrence(self, sequences: Sequences) -> tuple[Tensor, Tensors]:
        outputs, states = super().recurrence(sequences)
        if self.output_units is None:
            return outputs, states
        kernel, bias = self.timestep_weights["output_kernel"], self.timestep_weights.get("output_bias")
        if outputs.shape[0] == 1:  # the last output alone, with the weights of its own timestep
            last = ops.shape(sequences.inputs)[0] - 1
            outputs = affine_at(last, outputs, kernel, bias, sequences.weights, sequences.start)
        else:
            outputs = affine(outputs, kernel, bias, sequences.weights, sequences.start)
        return self.output_activation(outputs), states
