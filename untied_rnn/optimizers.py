"""Optimizers that see the weights of every timestep by themselves."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from untied_rnn import _arguments
from untied_rnn._arguments import KerasObject
from untied_rnn._types import Tensor


def _layout_of_one(variable: keras.Variable) -> keras.distribution.TensorLayout | None:
    """The layout over devices of one weight set: the layout of the stack without its first axis."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    # By the path alone: the layout that a variable keeps is of another class in earlier versions of Keras.
    layout = distribution.get_variable_layout(SimpleNamespace(path=variable.path, shape=variable.shape))
    return keras.distribution.TensorLayout(layout.axes[1:], layout.device_mesh)


class _Stack:
    """A stacked variable, and a variable for each of its weight sets, which the optimizer sees."""

    def __init__(self, variable: keras.Variable):
        self.variable = variable
        one, layout = variable.shape[1:], _layout_of_one(variable)
        *parents, scope, name = variable.path.split("/")
        # They have the path of the stack, for rules of optimizers that look at paths.
        with keras.name_scope(scope, override_parent="/".join(parents)):
            self.sets = [
                keras.Variable("zeros", one, variable.dtype, name=name, layout=layout)
                for _ in range(variable.shape[0])
            ]

    def split(self) -> None:
        for one, value in zip(self.sets, ops.unstack(self.variable.value), strict=True):
            one.assign(value)

    def join(self) -> None:
        self.variable.assign(ops.stack([one.value for one in self.sets]))

    def gradients(self, gradient: Tensor | None) -> list[Tensor | None]:
        return [None] * len(self.sets) if gradient is None else ops.unstack(gradient)


@keras.saving.register_keras_serializable(package="untied_rnn")
class PerTimestep(keras.optimizers.Optimizer):
    """Lets an optimizer see every weight set of an untied layer as a variable by itself.

    An untied layer stacks the weights of its timesteps in one variable. Wrapped, an optimizer steps as if
    there were one variable for each, so that it may look at whole variables:

    ```
    W[t] <- the optimizer's step for W[t], its gradient and its state    (each t)
    ```

    Timesteps that share a weight set are one variable. Variables other than such stacks are handed on as they
    are. The wrapped optimizer keeps learning rate, iterations and loss scale.

    Args:
        optimizer: A `keras.optimizers.Optimizer`, its name or its config. Its rules that look at the names or
            paths of variables see the name and path of the stack. It must not be used elsewhere.
        name: String, the name of this optimizer.

    Raises:
        ValueError: If `optimizer` names no optimizer, or is a `LossScaleOptimizer`, which belongs outside.

    Example:

    ```python
    import keras
    import numpy as np
    from untied_rnn import PerTimestep, UntiedLSTM

    model = keras.Sequential([keras.Input((12, 3)), UntiedLSTM(8), keras.layers.Dense(1)])
    adam = keras.optimizers.Adam(1e-3, clipnorm=1.0)  # a norm for each timestep
    model.compile(PerTimestep(adam), "mse")
    model.fit(np.ones((4, 12, 3)), np.ones((4, 1)), verbose=0)
    assert model.optimizer.iterations == 1
    ```

    References:
        - [Jordan et al., 2024, Muon: an optimizer for hidden layers in neural
          networks](https://kellerjordan.github.io/posts/muon/), whose step is defined for one matrix.
    """

    # Not `inner_optimizer`: there Keras's `SwapEMAWeights` would look for averages and swap them with the
    # weight sets of `_Stack`, which the model does not use. So it raises its error.
    optimizer: keras.optimizers.Optimizer

    def __init__(self, optimizer: KerasObject, name: str | None = None):
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = _arguments.check("optimizer", optimizer)
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            raise ValueError(
                "Expected the loss scaling outside, as LossScaleOptimizer(PerTimestep(optimizer)). "
                f"Received: optimizer={optimizer}"
            )
        self._stacks: dict[int, _Stack] = {}  # by the ids of their variables

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "optimizer": keras.optimizers.serialize(self.optimizer)}

    # Weight sets.

    def _seen(self, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
        """The variables that the wrapped optimizer sees for `variables`."""
        seen: list[keras.Variable] = []
        for variable in variables:
            if getattr(variable, "is_timestep_stack", False):
                if id(variable) not in self._stacks:
                    self._stacks[id(variable)] = _Stack(variable)
                seen += self._stacks[id(variable)].sets
            else:
                seen.append(variable)
        return seen

    @contextmanager
    def _split(self) -> Iterator[None]:
        """The weight sets have the values of the stacks, which take over their changes."""
        # All stacks, for averages (`use_ema`) overwrite also those without a gradient.
        for stack in self._stacks.values():
            stack.split()
        yield
        for stack in self._stacks.values():
            stack.join()

    # What Keras calls.

    def build(self, variables: list[keras.Variable]) -> None:
        seen = self._seen(variables)
        with self._split():
            self.optimizer.build(seen)
        super().build(variables)

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[keras.Variable] | None = None
    ) -> None:
        if trainable_variables is not None and not self.built:
            self.build(list(trainable_variables))
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                "Expected a gradient for each variable that is given, or that the optimizer is built on. "
                f"Received: {len(grads)} gradients, {len(variables)} variables"
            )
        gradients: list[Tensor | None] = []
        for gradient, variable in zip(grads, variables, strict=True):
            stack = self._stacks.get(id(variable))
            gradients += [gradient] if stack is None else stack.gradients(gradient)
        with self._split():
            self.optimizer.apply(gradients, self._seen(variables))
        for gradient, variable in zip(grads, variables, strict=True):
            # The wrapped optimizer has constrained the others.
            if id(variable) in self._stacks and gradient is not None and variable.constraint is not None:
                variable.assign(variable.constraint(variable))

    def finalize_variable_values(self, var_list: Sequence[keras.Variable]) -> None:
        with self._split():
            self.optimizer.finalize_variable_values(self._seen(var_list))

    def exclude_from_weight_decay(
        self, var_list: Sequence[keras.Variable] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        self.optimizer.exclude_from_weight_decay(self._seen(var_list or []), var_names)

    def set_weights(self, weights: Sequence[Tensor]) -> None:
        self.optimizer.set_weights(weights)

    # What is the wrapped optimizer's.

    @property
    def variables(self) -> list[keras.Variable]:
        return self.optimizer.variables

    @property
    def iterations(self) -> Tensor:
        return self.optimizer.iterations

    @property
    def learning_rate(self) -> Tensor:
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        self.optimizer.learning_rate = learning_rate

    @property
    def loss_scale_factor(self) -> float | None:
        return self.optimizer.loss_scale_factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float | None) -> None:
        if hasattr(self, "optimizer"):  # else Keras's constructor sets the factor of this optimizer
            self.optimizer.loss_scale_factor = factor
