"""Outputs and gradients of a layer, on any backend, as NumPy arrays."""

import keras
import numpy as np
from keras import ops


def names(layer):
    """Trainable weights by their variable names, with a number where another has the same."""
    found = {}
    for i, weight in enumerate(layer.trainable_weights):
        found[f"{weight.name} {i}" if weight.name in found else weight.name] = weight
    return found


def as_tuple(outputs):
    """All tensors in a tensor or nested lists of them."""
    return tuple(keras.tree.flatten(outputs))


def to_numpy(values):
    return tuple(ops.convert_to_numpy(value) for value in as_tuple(values))


def outputs_and_gradients(layer, x, cotangents, initial_state=None, **kwargs):
    """Outputs, and gradients of `sum(cotangents * outputs)` to inputs, state and trainable weights.

    An initial state is an array, with the gradient "initial_state", or a list of them, with "initial_state 0"
    and so on.
    """
    backend = keras.backend.backend()
    inputs = {"x": x}
    if isinstance(initial_state, list):
        inputs |= {f"initial_state {i}": state for i, state in enumerate(initial_state)}
    elif initial_state is not None:
        inputs["initial_state"] = initial_state
    dtype = layer.compute_dtype
    inputs = {name: ops.convert_to_tensor(value, dtype) for name, value in inputs.items()}
    cotangents = [ops.convert_to_tensor(c, dtype) for c in cotangents]
    weights = names(layer)

    def given(inputs):
        """Keyword arguments with the initial state."""
        states = [value for name, value in inputs.items() if name.startswith("initial_state")]
        return {**kwargs, **({"initial_state": states} if states else {})}

    def call(inputs):
        return as_tuple(layer(inputs["x"], **given(inputs)))

    def loss(outputs):
        return sum(ops.sum(c * y) for c, y in zip(cotangents, outputs, strict=True))

    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = call(inputs)
            value = loss(outputs)
        found = tape.gradient(
            value,
            {**inputs, **{name: weight.value for name, weight in weights.items()}},
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    elif backend == "jax":
        import jax

        fixed = [v.value for v in layer.non_trainable_variables]
        order = list(weights)

        def function(trainable):
            outputs, _ = layer.stateless_call(
                [trainable[name] for name in order],
                fixed,
                trainable["x"],
                **given(trainable),
            )
            return loss(as_tuple(outputs)), outputs

        trainable = {**inputs, **{name: weight.value for name, weight in weights.items()}}
        # Compiled as one program, since op by op takes JAX several times as long.
        found, outputs = jax.jit(jax.grad(function, has_aux=True))(trainable)
    else:
        import torch

        leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
        outputs = call(leaves)
        leaves |= {name: weight.value for name, weight in weights.items()}
        values = torch.autograd.grad(loss(outputs), list(leaves.values()), allow_unused=True)
        found = {
            name: torch.zeros_like(leaf) if value is None else value
            for (name, leaf), value in zip(leaves.items(), values, strict=True)
        }
        outputs = [output.detach() for output in outputs]
    gradients = {name: np.asarray(ops.convert_to_numpy(found[name])) for name in [*inputs, *weights]}
    return to_numpy(outputs), gradients
