"""The hand-written gradient: that it is the one that runs, and that it can be differentiated again."""

import keras
import numpy as np
import pytest
from conftest import BACKEND, DTYPE, EXACT
from keras import ops

from untied_rnn import recurrence
from untied_rnn.recurrence import simple_recurrence

T, B, INPUT_DIM, U = 4, 2, 5, 3


def arguments(rng):
    shapes = ((T, B, INPUT_DIM), (T, INPUT_DIM, U), (T, U), (T, U, U), (B, U))
    return [ops.convert_to_tensor(rng.normal(size=shape), DTYPE) for shape in shapes]


def penalty_gradient(tensors, activation, unroll, jit, **options):
    """Gradient of `|dL/dx|^2 + |dL/dW|^2 + ... + |dL/dh_0|^2`: a gradient penalty."""

    def loss(*tensors):
        return ops.sum(simple_recurrence(*tensors, activation, unroll=unroll, **options) ** 3)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit)
        def function(*tensors):
            with tf.GradientTape() as outer:
                outer.watch(tensors)
                with tf.GradientTape() as inner:
                    inner.watch(tensors)
                    value = loss(*tensors)
                penalty = sum(tf.reduce_sum(g**2) for g in inner.gradient(value, tensors))
            return outer.gradient(penalty, tensors)

        found = function(*tensors)
    elif BACKEND == "jax":
        import jax

        places = tuple(range(len(tensors)))
        gradient = jax.grad(loss, argnums=places)
        penalty = jax.grad(lambda *t: sum((g**2).sum() for g in gradient(*t)), argnums=places)
        found = (jax.jit(penalty) if jit else penalty)(*tensors)
    else:
        import torch

        tensors = [t.clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(loss(*tensors), tensors, create_graph=True)
        found = torch.autograd.grad(sum((g**2).sum() for g in first), tensors)
    return [np.asarray(ops.convert_to_numpy(g)) for g in found]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_second_order_gradient_is_that_of_plain_autodiff(jit, unroll, return_sequences, masked, rng):
    tensors = arguments(rng)
    options = {"return_sequences": return_sequences}
    if masked:
        options["mask"] = ops.convert_to_tensor(rng.random((T, B, 1)) < 0.6)
        options["state_dropout"] = ops.convert_to_tensor(rng.random((B, U)) * 2, DTYPE)

    def tanh(a):  # not the function that `simple_recurrence` knows a slope of
        return ops.tanh(a)

    received = penalty_gradient(tensors, keras.activations.tanh, unroll, jit, **options)
    expected = penalty_gradient(tensors, tanh, True, False, **options)
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT["rtol"], atol=EXACT["rtol"] * np.abs(b).max())


@pytest.mark.skipif(BACKEND == "torch", reason="torch differentiates its own loop")
@pytest.mark.parametrize(
    ("activation", "unroll", "expected"),
    [("tanh", False, 1), ("relu", 2, 1), ("softsign", False, 0), ("tanh", True, 0)],
)
def test_loops_over_known_activations_take_the_hand_written_gradient(
    activation, unroll, expected, rng, monkeypatch
):
    calls = []
    custom_gradient = ops.custom_gradient
    monkeypatch.setattr(
        recurrence.ops, "custom_gradient", lambda f: lambda *a: calls.append(f) or custom_gradient(f)(*a)
    )
    simple_recurrence(*arguments(rng), keras.activations.get(activation), unroll=unroll)
    assert len(calls) == expected


@pytest.mark.skipif(BACKEND != "jax", reason="`vmap` is JAX's")
def test_vmap_over_the_batch_of_gradients(rng):
    import jax

    x, kernel, bias, recurrent_kernel, state = arguments(rng)
    mask = ops.convert_to_tensor(rng.random((T, B, 1)) < 0.6)

    def loss(recurrent_kernel, x, state, mask):
        tensors = (x, kernel, bias, recurrent_kernel, state)
        return (simple_recurrence(*tensors, keras.activations.tanh, mask=mask) ** 2).sum()

    per_sample = jax.vmap(jax.grad(loss), in_axes=(None, 1, 0, 1))(
        recurrent_kernel, x[:, :, None], state[:, None], mask[:, :, None]
    )
    whole = jax.grad(loss)(recurrent_kernel, x, state, mask)
    np.testing.assert_allclose(per_sample.sum(axis=0), whole, **EXACT)
