"""Gradients written by hand: `keras.ops.custom_gradient`, with graphs that can be freed, and `vjp`."""

import weakref
from collections.abc import Callable
from typing import Any

import keras

from untied_rnn._types import Tensor, Tensors


def custom_gradient(function: Callable) -> Callable:
    """`function`, which returns results and the function of their gradients, with that gradient.

    TensorFlow registers each gradient that a graph uses in a table that is never emptied, and with it all
    that the gradient refers to: the graph, its tensors, perhaps a layer and its weights. Here the graph holds
    the gradient and the table refers to it weakly, so that both go with the last layer or model that uses
    them.
    """
    decorated = keras.ops.custom_gradient(function)
    if keras.backend.backend() != "tensorflow":
        return decorated
    import tensorflow as tf

    def call(*args: Any) -> Any:
        results = decorated(*args)
        if not tf.executing_eagerly():
            first = tf.nest.flatten(results)[0]
            _hold_by_graph(first.graph, first.op.get_attr("_gradient_op_type").decode())
        return results

    return call


def vjp(function: Callable[..., Tensor], primals: Tensors) -> tuple[Tensor, Callable[[Tensor], Tensors]]:
    """The value of a function, and its vector-Jacobian product: gradients of `primals` from the value's."""
    if keras.backend.backend() == "jax":
        import jax

        value, gradients = jax.vjp(function, *primals)
        return value, lambda d_value: list(gradients(d_value.astype(value.dtype)))
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(primals)
        value = function(*primals)

    def pullback(d_value: Tensor) -> Tensors:
        d_value = tf.cast(d_value, value.dtype)
        return tape.gradient(value, primals, d_value, tf.UnconnectedGradients.ZERO)

    return value, pullback


def _hold_by_graph(graph: Any, name: str) -> None:
    # Private, for there is no public way to change the table; without it gradients work and are not freed.
    from tensorflow.python.framework import ops

    entry = getattr(ops.gradient_registry, "_registry", {}).get(name, {})
    if gradient := entry.get("type"):
        graph._untied_rnn_gradients = [*getattr(graph, "_untied_rnn_gradients", []), gradient]
        reference: Callable[[], Any] = weakref.ref(gradient)
        entry["type"] = lambda *upstream: reference()(*upstream)
