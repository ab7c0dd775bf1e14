"""`UntiedDense`: a Dense layer with weights per timestep."""

from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from untied_rnn._arguments import KerasObject, LayerArguments
from untied_rnn._layers.layer import UntiedLayer
from untied_rnn._loops.phase import first_timestep, laid_out, taken_back
from untied_rnn._types import Activation, Shape, Tensor
from untied_rnn._weights.weights import affine
from untied_rnn.sharing import SharingArgument


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedDense(UntiedLayer):
    r"""A Dense layer whose weights are separate for every timestep, as one batched product.

    ```
    y_t = activation(x_t W_t + b_t)                         for t = 1 .. T
    ```

    `keras.layers.Dense` applies one matrix to all timesteps; this is what `LocallyConnected1D` with a
    kernel of size 1 was.

    Args:
        units: Positive integer, the size of each `y_t`.
        activation: Activation of the output. `None` is linear.
        use_bias: Whether there are biases.
        kernel_initializer: Initializer of each `W_t`, of shape `(input_dim, units)`. An integer
            seed in it is reproducible and gives other values at each timestep.
        bias_initializer: Initializer of each `b_t`.
        kernel_regularizer: Regularizer of each `W_t`; the penalties of all weight sets are added. Or
            `untied_rnn.regularizers.TimeSmoothness`.
        bias_regularizer: Regularizer of each `b_t`.
        activity_regularizer: Regularizer of what the layer outputs.
        kernel_constraint: Constraint on each `W_t` by itself.
        bias_constraint: Constraint on each `b_t` by itself.
        kernel_sharing: The sharing of `W` alone, in place of `sharing`.
        bias_sharing: The sharing of `b` alone.
        lora_rank: `None`: low-rank kernels are `untied_rnn.sharing.LowRank`. So for the next two.
        lora_alpha: `None`.
        quantization_config: `None`.

    Call arguments:
        inputs: Tensor of shape `(batch, timesteps, input_dim)`.
        start: The timestep whose weights the sequences begin with, an integer. In a layer for any number of
            timesteps, as with `Periodic`, also a tensor of integers, `()` or one for each sample, `(batch,)`.

    Output shape:
        `(batch, timesteps, units)`.

    Variables:
        With as many weight sets as timesteps, or fewer if they are shared:

        - `kernel`: `W`, `(timesteps, input_dim, units)`.
        - `bias`: `b`, `(timesteps, units)`.

    Masking:
        A mask is handed on, and changes nothing here.

    Example:

    ```python
    import numpy as np
    from untied_rnn import UntiedDense

    prices = np.random.random((64, 30, 4)).astype("float32")
    hedge = UntiedDense(1)  # one strategy for each of 30 days
    assert hedge(prices).shape == (64, 30, 1)
    assert hedge.weights_at(14)["kernel"].shape == (4, 1)
    ```

    References:
        - [Han, Jentzen and E, 2018, Solving high-dimensional partial differential equations using deep
          learning](https://doi.org/10.1073/pnas.1718942115), a separate network for each time step.
        - [Keras issue 8918](https://github.com/keras-team/keras/issues/8918), which asks for it.
    """

    tied_class = keras.layers.Dense

    units: int
    activation: Activation
    use_bias: bool

    def __init__(
        self,
        units: int,
        activation: KerasObject | None = None,
        use_bias: bool = True,
        kernel_initializer: KerasObject = "glorot_uniform",
        bias_initializer: KerasObject = "zeros",
        kernel_regularizer: KerasObject | None = None,
        bias_regularizer: KerasObject | None = None,
        activity_regularizer: KerasObject | None = None,
        kernel_constraint: KerasObject | None = None,
        bias_constraint: KerasObject | None = None,
        lora_rank: None = None,
        lora_alpha: None = None,
        quantization_config: None = None,
        *,
        timesteps: int | None = None,
        sharing: SharingArgument = "untied",
        kernel_sharing: SharingArgument | None = None,
        bias_sharing: SharingArgument | None = None,
        frozen_timesteps: Sequence[int] | None = None,
        **kwargs: Unpack[LayerArguments],
    ):
        super().__init__(locals())

    def build_weights(self, step_shape: tuple[int, ...]) -> None:
        (input_dim,) = step_shape
        add, options_of = self.add_timestep_weight, self.options_of
        self.kernel = add("kernel", (input_dim, self.units), *options_of("kernel"))
        self.bias = add("bias", (self.units,), *options_of("bias")) if self.use_bias else None

    def call(self, inputs: Tensor, start: Any = None) -> Tensor:
        self.checked_shape(inputs.shape)
        start = None if start is None else self.checked_start(start, inputs.shape)
        if start is None or isinstance(start, int) or len(start.shape) == 0:
            return self._outputs(inputs, start)
        cycle = self.timestep_weights.cycle
        return taken_back(self._outputs(laid_out(inputs, start, cycle), None), start, cycle)

    def _outputs(self, inputs: Tensor, start: Any) -> Tensor:
        weights = self.timestep_weights
        values = weights.values(ops.shape(inputs)[1], start)
        x = ops.transpose(inputs, (1, 0, 2))
        outputs = affine(x, weights["kernel"], weights.get("bias"), values, first_timestep(start))
        return self.activation(ops.transpose(outputs, (1, 0, 2)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*self.checked_shape(input_shape)[:2], self.units)
