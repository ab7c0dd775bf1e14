"""`UntiedSimpleRNN`: its weights and its step."""

from typing import Any

import keras
from keras import ops

from untied_rnn import arguments
from untied_rnn.arguments import KerasObject
from untied_rnn.recurrence import affine, simple_recurrence
from untied_rnn.rnn import BaseUntiedRNN, Tensor


@keras.saving.register_keras_serializable(package="untied_rnn")
class UntiedSimpleRNN(BaseUntiedRNN):
    r"""A fully-connected RNN whose weights are separate for every timestep.

    With `W`, `U`, `b` (and `V`, `c`) of its own for each timestep `t = 1 .. T`:

    ```
    h_t = activation(x_t W_t + h_{t-1} U_t + b_t)
    y_t = output_activation(h_t V_t + c_t)            (with `output_units`)
    ```

    It takes the place of `keras.layers.SimpleRNN`: arguments that both have mean the same.

    Args:
        units: Positive integer, the size of the state `h`.
        timesteps: Positive integer, the number `T` of weight sets, or `None` for the length of the
            first input. A shorter sequence uses the first weight sets; a longer one is an error.
        activation: Activation of the state. `None` is linear.
        use_bias: Whether there are `b` and, with `output_units`, `c`.
        output_units: Positive integer, the size of the output `y`; `None` outputs the state.
        output_activation: Activation of the output. `None` is linear.
        kernel_initializer: Initializer of each `W_t`, of shape `(input_dim, units)`. An integer
            seed in it is reproducible and gives other values at each timestep.
        recurrent_initializer: Initializer of each `U_t`, of shape `(units, units)`.
        bias_initializer: Initializer of each `b_t`, `(units,)`, and `c_t`, `(output_units,)`.
        output_initializer: Initializer of each `V_t`, of shape `(units, output_units)`.
        kernel_regularizer: Regularizer of each `W_t`; the penalties of all timesteps are added.
        recurrent_regularizer: Regularizer of each `U_t`.
        bias_regularizer: Regularizer of each `b_t` and `c_t`.
        output_regularizer: Regularizer of each `V_t`.
        activity_regularizer: Regularizer of what the layer outputs.
        kernel_constraint: Constraint on each `W_t` by itself.
        recurrent_constraint: Constraint on each `U_t` by itself.
        bias_constraint: Constraint on each `b_t` and `c_t` by itself.
        output_constraint: Constraint on each `V_t` by itself.
        dropout: Fraction of the inputs to drop, the same ones at every timestep.
        recurrent_dropout: Fraction of the state to drop where it enters `h_{t-1} U_t`, the same
            units at every timestep.
        seed: Integer seed of the dropout.
        return_sequences: Whether to return the outputs of all timesteps or the last one.
        return_state: Whether to return the last state in addition.
        go_backwards: Whether to process the sequence from its end, and return outputs in that
            order. Weight set `t` belongs to the `t`-th *processed* step.
        stateful: Whether the last state of sample `i` is the initial state of sample `i` in the
            next batch, which starts again at the first weight set. Needs a defined batch size.
        unroll: `True` writes all timesteps out, which for few is faster; compilation grows with `T`.
            `False` loops over them. An integer is the number of timesteps that one iteration of
            the loop runs. `"auto"` writes out up to 32 timesteps.
        zero_output_for_mask: Whether the output is zero at masked timesteps, instead of the last
            unmasked output.
        jit_compile: On TensorFlow, whether XLA compiles the layer also outside of `fit` (plain
            calls, custom training loops). `"auto"` does so on a GPU. Other backends ignore it.
        **kwargs: Arguments of `keras.Layer`, such as `name` or `dtype`.

    Call arguments:
        sequences: Tensor of shape `(batch, timesteps, input_dim)`.
        initial_state: State before the first timestep, a tensor of shape `(batch, units)` or a
            list of that one tensor. Zeros if not given.
        mask: Boolean tensor of shape `(batch, timesteps)`; `False` marks timesteps to skip.
        training: Whether dropout is active.

    Input shape:
        `(batch, timesteps, input_dim)`.

    Output shape:
        `(batch, features)`, or `(batch, timesteps, features)` with `return_sequences`, where
        `features` is `output_units` or else `units`. With `return_state`, a tuple of that and the
        last state `(batch, units)`.

    Variables:
        - `kernel`: `W`, `(timesteps, input_dim, units)`.
        - `recurrent_kernel`: `U`, `(timesteps, units, units)`.
        - `bias`: `b`, `(timesteps, units)`.
        - `output_kernel`: `V`, `(timesteps, units, output_units)`.
        - `output_bias`: `c`, `(timesteps, output_units)`.

    Masking:
        A masked timestep keeps the state and repeats the last output (zeros before the first
        unmasked timestep, or at all masked ones with `zero_output_for_mask`). The weight set of a
        masked timestep is skipped with it. Masks come from `mask`, `keras.layers.Masking` or
        `keras.layers.Embedding(mask_zero=True)`, and are handed on with `return_sequences`.

    Raises:
        TypeError, ValueError: For an argument outside of what is said above; if neither `timesteps`
            nor the time axis of the input is defined when the layer is built; for a sequence longer
            than `timesteps`, or an input, mask or initial state of another shape.

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

    def __init__(
        self,
        units: int,
        timesteps: int | None = None,
        activation: KerasObject | None = "tanh",
        use_bias: bool = True,
        output_units: int | None = None,
        output_activation: KerasObject | None = None,
        kernel_initializer: KerasObject = "glorot_uniform",
        recurrent_initializer: KerasObject = "orthogonal",
        bias_initializer: KerasObject = "zeros",
        output_initializer: KerasObject = "glorot_uniform",
        kernel_regularizer: KerasObject | None = None,
        recurrent_regularizer: KerasObject | None = None,
        bias_regularizer: KerasObject | None = None,
        output_regularizer: KerasObject | None = None,
        activity_regularizer: KerasObject | None = None,
        kernel_constraint: KerasObject | None = None,
        recurrent_constraint: KerasObject | None = None,
        bias_constraint: KerasObject | None = None,
        output_constraint: KerasObject | None = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool | int | str = "auto",
        zero_output_for_mask: bool = False,
        jit_compile: bool | str = "auto",
        **kwargs: Any,
    ):
        received = dict(locals())
        super().__init__(
            timesteps=timesteps,
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            zero_output_for_mask=zero_output_for_mask,
            jit_compile=jit_compile,
            **kwargs,
        )
        arguments.store(self, UntiedSimpleRNN.__init__, received)
        self.state_size = [self.units]
        self.output_size = self.output_units or self.units
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **arguments.config(self, UntiedSimpleRNN.__init__)}

    def build_weights(self, input_dim: int) -> None:
        def add(name: str, shape: tuple[int, ...], role: str) -> keras.Variable:
            options = (
                getattr(self, f"{role}_{kind}") for kind in ("initializer", "regularizer", "constraint")
            )
            return self.add_timestep_weight(name, shape, *options)

        self.kernel = add("kernel", (input_dim, self.units), "kernel")
        self.recurrent_kernel = add("recurrent_kernel", (self.units, self.units), "recurrent")
        self.bias = add("bias", (self.units,), "bias") if self.use_bias else None
        if self.output_units:
            self.output_kernel = add("output_kernel", (self.units, self.output_units), "output")
            self.output_bias = add("output_bias", (self.output_units,), "bias") if self.use_bias else None

    def noise(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Tensor]:
        def keep(like: Tensor, rate: float) -> Tensor:
            return keras.random.dropout(ops.ones_like(like), rate, seed=self.seed_generator)

        noise = {}
        if training and self.dropout:
            noise["inputs"] = keep(sequences[:, 0], self.dropout)
        if training and self.recurrent_dropout:
            noise["state"] = keep(states[0], self.recurrent_dropout)
        return noise

    def recurrence(
        self,
        inputs: Tensor,
        states: list[Tensor],
        mask: Tensor | None,
        weights: dict[str, Tensor],
        noise: dict[str, Tensor],
        unroll: bool | int,
    ) -> tuple[Tensor, list[Tensor]]:
        if "inputs" in noise:
            inputs = inputs * noise["inputs"]
        # Masked outputs repeat earlier ones, so that all are needed to know the last.
        return_sequences = self.return_sequences or mask is not None
        sequence = simple_recurrence(
            inputs,
            weights["kernel"],
            weights.get("bias"),
            weights["recurrent_kernel"],
            states[0],
            self.activation,
            mask=mask,
            state_dropout=noise.get("state"),
            return_sequences=return_sequences,
            unroll=unroll,
        )
        sequence, state = (sequence, sequence[-1]) if return_sequences else (sequence[None], sequence)
        if self.output_units is None:
            return sequence, [state]
        kernel, bias = weights["output_kernel"], weights.get("output_bias")
        if not return_sequences:
            kernel, bias = kernel[-1:], None if bias is None else bias[-1:]
        return self.output_activation(affine(sequence, kernel, bias)), [state]

    @classmethod
    def from_tied(cls, layer: keras.layers.SimpleRNN, timesteps: int) -> "UntiedSimpleRNN":
        """An untied layer that computes what a tied one does: its weights, repeated.

        Args:
            layer: A built `keras.layers.SimpleRNN`.
            timesteps: Number of weight sets: the length of the longest sequence to process.

        Returns:
            A built `UntiedSimpleRNN` with the same configuration and outputs. Its regularizers, like
            its weights, count once per timestep.

        Raises:
            TypeError: If `layer` is no `keras.layers.SimpleRNN`.
            ValueError: If `layer` is not built.
        """
        if not isinstance(layer, keras.layers.SimpleRNN):
            raise TypeError(f"Expected a `keras.layers.SimpleRNN`. Received: {layer!r}")
        if not layer.built:
            raise ValueError(f"Expected a built layer. Received: {layer!r}, which has no weights yet.")
        config = {**layer.get_config(), "seed": layer.cell.seed, "timesteps": timesteps}
        del config["name"]  # two layers of one name cannot stand in one model
        if not config["unroll"]:  # the default there: nothing was asked for
            del config["unroll"]
        untied = cls(**config)  # and not `from_config`, which would wrap what is wrong with `timesteps`
        batch_size = layer.states[0].shape[0] if layer.stateful else None
        untied.build((batch_size, untied.timesteps, layer.cell.kernel.shape[0]))
        untied.set_weights([ops.repeat(w[None], untied.timesteps, axis=0) for w in layer.get_weights()])
        for state, tied_state in zip(untied.states or [], layer.states or [], strict=True):
            state.assign(tied_state)
        return untied
