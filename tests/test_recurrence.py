"""The hand-written gradient: that it is the one that runs, and that it can be differentiated again."""

import numpy as np
import pytest
from conftest import BACKEND, DTYPE, EXACT
from keras import ops

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN
from untied_rnn._loops import recurrence
from untied_rnn._loops.recurrence import affine_recurrence
from untied_rnn._loops.scan import Stack
from untied_rnn._weights.sets import periodic
from untied_rnn.sharing import Blocks

T, B, INPUT_DIM, U = 4, 2, 5, 3
LAYERS = {
    "simple": UntiedSimpleRNN,
    "lstm": UntiedLSTM,
    "gru": UntiedGRU,
}


def problem(rng, name, sets=T):
    """A layer, and inputs, states and weights for it in a flat list."""
    layer = LAYERS[name](U, sharing=Blocks(T // sets))
    layer.build((B, T, INPUT_DIM))
    shapes = [(T, B, INPUT_DIM), *((B, U) for _ in layer.state_size), *(w.shape for w in layer.weights)]
    return layer, [ops.convert_to_tensor(rng.normal(size=shape), DTYPE) for shape in shapes]


def recurred(layer, tensors, index=None, **options):
    """The outputs of `affine_recurrence` for such a list."""
    number = len(layer.state_size)
    stacks = [Stack(values, index) for values in tensors[1 + number :]]
    weights = dict(zip(("kernel", "recurrent_kernel", "bias"), stacks, strict=True))
    return affine_recurrence(layer.gates, tensors[0], tensors[1 : 1 + number], weights, **options)[0]


def penalty_gradient(layer, tensors, **options):
    """Gradient of `|dL/dx|^2 + |dL/dW|^2 + ... + |dL/dh_0|^2`: a gradient penalty."""

    def loss(*tensors):
        return ops.sum(recurred(layer, tensors, **options) ** 3)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
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
        found = jax.jit(penalty)(*tensors)
    else:
        import torch

        tensors = [t.clone().requires_grad_() for t in tensors]
        first = torch.autograd.grad(loss(*tensors), tensors, create_graph=True)
        found = torch.autograd.grad(sum((g**2).sum() for g in first), tensors)
    return [np.asarray(ops.convert_to_numpy(g)) for g in found]


@pytest.mark.parametrize(
    ("name", "sets", "masked", "return_sequences"),
    [
        ("simple", 2, True, True),
        ("lstm", T, True, False),
        ("lstm", 2, False, True),
        ("gru", 2, True, False),
    ],
)
def test_second_order_gradient_of_a_loop_is_that_of_plain_autodiff(name, sets, masked, return_sequences, rng):
    layer, tensors = problem(rng, name, sets)
    options = {"return_sequences": return_sequences}
    if sets < T:
        options["index"] = periodic(sets).index
    if masked:
        options["mask"] = ops.convert_to_tensor(rng.random((T, B, 1)) < 0.6)
        options["state_dropout"] = ops.convert_to_tensor(rng.random((1, B, U)) * 2, DTYPE)

    def tanh(a):  # not the function that a slope is known of
        return ops.tanh(a)

    received = penalty_gradient(layer, tensors, unroll=False, **options)
    plain = LAYERS[name](U, activation=tanh)
    expected = penalty_gradient(plain, tensors, unroll=True, **options)
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=EXACT["rtol"], atol=EXACT["rtol"] * np.abs(b).max())


@pytest.mark.skipif(BACKEND == "torch", reason="torch differentiates its own loop")
@pytest.mark.parametrize(
    ("name", "activation", "unroll", "expected"),
    [
        ("simple", "tanh", False, 1),
        ("simple", "relu", 2, 1),
        ("lstm", "tanh", False, 1),
        ("gru", "tanh", False, 1),
        ("simple", "softsign", False, 0),
        ("lstm", "softsign", False, 0),
        ("gru", "softsign", False, 0),
        ("simple", "tanh", True, 0),
    ],
)
def test_loops_over_known_activations_take_the_hand_written_gradient(
    name, activation, unroll, expected, rng, monkeypatch
):
    calls = []
    custom_gradient = recurrence.custom_gradient
    monkeypatch.setattr(
        recurrence, "custom_gradient", lambda f: lambda *a: calls.append(f) or custom_gradient(f)(*a)
    )
    recurred(LAYERS[name](U, activation=activation), problem(rng, name)[1], unroll=unroll)
    assert len(calls) == expected


@pytest.mark.skipif(BACKEND != "jax", reason="`vmap` is JAX's")
@pytest.mark.parametrize(("name", "sets"), [("simple", T), ("lstm", 2)])
def test_vmap_over_the_batch_of_gradients(name, sets, rng):
    import jax

    layer, (x, *rest) = problem(rng, name, sets)
    mask = ops.convert_to_tensor(rng.random((T, B, 1)) < 0.6)
    number = len(layer.state_size)
    states, weights = rest[:number], rest[number:]
    index = periodic(sets).index

    def loss(weights, x, states, mask):
        return (recurred(layer, [x, *states, *weights], mask=mask, index=index) ** 2).sum()

    per_sample = jax.vmap(jax.grad(loss), in_axes=(None, 1, 0, 1))(
        weights, x[:, :, None], [state[:, None] for state in states], mask[:, :, None]
    )
    for a, b in zip(per_sample, jax.grad(loss)(weights, x, states, mask), strict=True):
        np.testing.assert_allclose(a.sum(axis=0), b, **EXACT)
