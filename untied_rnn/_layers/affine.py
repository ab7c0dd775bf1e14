"""The base of layers whose timestep is two affine maps and a function of them."""

from typing import Any

import keras
from keras import ops

from untied_rnn._layers.recurrent import RecurrentLayer, Sequences
from untied_rnn._loops.compilation import WrittenOut
from untied_rnn._loops.gates import Gates
from untied_rnn._loops.recurrence import affine_recurrence
from untied_rnn._types import Constraint, Initializer, Regularizer, Tensor


class AffineRNN(RecurrentLayer):
    """Base class of `UntiedSimpleRNN`, `UntiedLSTM` and `UntiedGRU`.

    A subclass sets `self.gates`, what it does with `x_t W_t + b_t` and `h_{t-1} U_t`, and `state_size`.

    Args:
        units: Positive integer, the size of the state `h`.
        use_bias: Whether there are biases.
        kernel_initializer: Initializer of each `W_t`. An integer seed in it is reproducible and gives
            other values at each timestep.
        recurrent_initializer: Initializer of each `U_t`.
        bias_initializer: Initializer of each bias.
        kernel_regularizer: Regularizer of each `W_t`; the penalties of all weight sets are added. Or
            `untied_rnn.regularizers.TimeSmoothness`.
        recurrent_regularizer: Regularizer of each `U_t`.
        bias_regularizer: Regularizer of each bias.
        activity_regularizer: Regularizer of what the layer outputs.
        kernel_constraint: Constraint on each `W_t` by itself.
        recurrent_constraint: Constraint on each `U_t` by itself.
        bias_constraint: Constraint on each bias by itself.
        dropout: Fraction of the inputs to drop, the same ones at every timestep.
        recurrent_dropout: Fraction of the state `h` to drop where it enters `h_{t-1} U_t`, the same
            units at every timestep.
        seed: Integer seed of the dropout.
        kernel_sharing: The sharing of `W` alone, in place of `sharing`.
        recurrent_sharing: The sharing of `U` alone.
        bias_sharing: The sharing of the biases alone.
        **kwargs: Arguments of `keras.Layer`, such as `name` or `dtype`. `implementation`, by which Keras's
            cells choose between orders of computation, is accepted and has no effect.
    """

    gates: Gates
    # Of an LSTM and a GRU, measured on 2 cores: written out, a training step in a plain graph takes 0.67 to
    # 0.9 of the loop's time, at 28 to 100 timesteps of 64 to 256 units, and the first call 0.1 s more for
    # each timestep. Under XLA the loop is as fast, and compiles in a tenth of the time.
    few_timesteps = WrittenOut(xla=0, graph=32, eager=0)

    units: int
    use_bias: bool
    kernel_initializer: Initializer
    recurrent_initializer: Initializer
    bias_initializer: Initializer
    kernel_regularizer: Regularizer | None
    recurrent_regularizer: Regularizer | None
    bias_regularizer: Regularizer | None
    kernel_constraint: Constraint | None
    recurrent_constraint: Constraint | None
    bias_constraint: Constraint | None
    dropout: float
    recurrent_dropout: float
    seed: int | None

    def __init__(self, received: dict[str, Any]):
        received["kwargs"].pop("implementation", None)
        super().__init__(received)
        self.output_size = self.units
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        return (self.gates.parts * self.units,)

    def build_weights(self, step_shape: tuple[int, ...]) -> None:
        (input_dim,) = step_shape
        features = self.gates.parts * self.units
        add, options_of = self.add_timestep_weight, self.options_of
        self.kernel = add("kernel", (input_dim, features), *options_of("kernel"))
        self.recurrent_kernel = add("recurrent_kernel", (self.units, features), *options_of("recurrent"))
        self.bias = add("bias", self.bias_shape, *options_of("bias")) if self.use_bias else None

    def random_tensors(self, sequences: Tensor, states: list[Tensor], training: bool) -> dict[str, Tensor]:
        # As in Keras: with recurrent dropout each part of a projection has masks of its own.
        parts = self.gates.parts if self.recurrent_dropout else 1

        def keep(like: Tensor, rate: float) -> Tensor:
            ones = ops.ones_like(like)
            return ops.stack(
                [keras.random.dropout(ones, rate, seed=self.seed_generator) for _ in range(parts)]
            )

        masks = {}
        if training and self.dropout:
            masks["input_dropout"] = keep(sequences[:, 0], self.dropout)
        if training and self.recurrent_dropout:
            masks["state_dropout"] = keep(states[0], self.recurrent_dropout)
        return masks

    def recurrence(self, sequences: Sequences) -> tuple[Tensor, list[Tensor]]:
        return affine_recurrence(
            self.gates,
            sequences.inputs,
            sequences.states,
            self.weights_of(sequences.weights, sequences.start),
            mask=sequences.mask,
            # Masked outputs repeat earlier ones, so that all are needed to know the last.
            return_sequences=self.return_sequences or sequences.mask is not None,
            unroll=sequences.unroll,
            **sequences.random,
        )

    @classmethod
    def arguments_of(cls, layer: keras.Layer) -> dict[str, Any]:
        config = super().arguments_of(layer)
        if isinstance(layer, cls.tied_class):
            config["seed"] = layer.cell.seed  # which Keras itself forgets
            if not config["unroll"]:  # the default there: nothing was asked for
                del config["unroll"]
        return config
