"""Every way to call a layer gives the same numbers, derivatives too, in any precision.

What is expected comes from the layer in the widest precision, called and differentiated in the plainest way.
That this is right is what `test_numpy_loop.py` and `test_cell_rnn.py` show, against NumPy.
"""

import functools
import shutil

import keras
import numpy as np
import pytest
from autodiff import names, outputs_and_gradients, to_numpy
from cases import case_name, pairwise, randomised
from conftest import BACKEND, DTYPE
from keras import ops

from untied_rnn import UntiedGRU, UntiedRNN, UntiedSimpleRNN
from untied_rnn._layers import rnn as cell_rnn
from untied_rnn._loops import recurrence
from untied_rnn.sharing import Blocks, Periodic

B, T, I, U = 3, 3, 2, 4  # noqa: E741 (the letters of the formulas)
# Largest error allowed, as a fraction of the largest number: of outputs and gradients, and of gradients of
# gradients. In half precision 8 and 16 times the distance from 1 to the next number; over seven random inputs
# the largest errors were 2.4 and 12 times that.
PRECISIONS = {
    "float64": (1e-12, 1e-12),
    "float32": (5e-6, 5e-6),
    "mixed_float16": (8 * 2**-10, 16 * 2**-10),
    "mixed_bfloat16": (8 * 2**-7, 16 * 2**-7),
}
FORMS = {"written out": True, "loop": False}
LAYERS = {
    "simple": lambda **options: UntiedSimpleRNN(U, **options),
    "gru, shared": lambda **options: UntiedGRU(U, sharing=Periodic(2), **options),
    "any cell, shared and frozen": lambda **options: UntiedRNN(
        keras.layers.SimpleRNNCell(U, dtype=options["dtype"]),
        sharing=Blocks(2),
        frozen_timesteps=[2],
        **options,
    ),
}

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="calls `tf.function` or `tf.GradientTape`")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="calls `jax.jit`, `jax.grad` or `jax.vmap`")
on_torch = pytest.mark.skipif(BACKEND != "torch", reason="calls `torch.autograd` or `torch.compile`")


def single(array):
    """Numbers that single precision holds exactly, for `fit` and `predict` make their data such."""
    return array.astype("float32").astype("float64")


X = single(np.random.default_rng(7).normal(size=(B, T, I)))
MASK = np.array([[True, False, True], [False, True, True], [True, True, False]])


def build(form="loop", dtype=DTYPE, name="simple", **options):
    layer = LAYERS[name](unroll=FORMS[form], dtype=dtype, **options)
    layer.build((None, T, I))
    return randomised(layer, np.random.default_rng(6))


def assert_close(received, expected, precision, order=1):
    fraction = PRECISIONS[precision][order - 1]
    for a, b in zip(received, expected, strict=True):
        a, b = (np.asarray(ops.convert_to_numpy(value), "float64") for value in (a, b))
        np.testing.assert_allclose(a, b, rtol=0, atol=fraction * np.abs(b).max())


@pytest.fixture
def forms_that_ran(monkeypatch):
    """The forms of the recurrence that ran, so that one cannot silently stand in for the other."""
    ran = set()
    original = recurrence.scan

    def spy(*args, unroll=False, **kwargs):
        ran.update(form for form, value in FORMS.items() if value == unroll)
        return original(*args, unroll=unroll, **kwargs)

    monkeypatch.setattr(recurrence, "scan", spy)
    monkeypatch.setattr(cell_rnn, "scan", spy)
    return ran


def derivatives(layer, x):
    """Outputs, first- and second-order gradients, by TensorFlow; with a mask if sequences are returned."""
    import tensorflow as tf

    sources = [x, *(weight.value for weight in layer.trainable_weights)]
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch(sources)
            outputs = layer(x, mask=MASK if layer.return_sequences else None)
            loss = tf.reduce_sum(tf.cast(outputs, x.dtype) ** 3)
        first = inner.gradient(loss, sources)
        penalty = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
    return outputs, first, outer.gradient(penalty, sources)


def jacobian(layer, x):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x)
    return tape.batch_jacobian(outputs, x)


@functools.cache
def expected(function, name="simple", **options):
    """`function` of the layer in double precision, written out and called eagerly."""
    return function(build("written out", "float64", name, **options), ops.convert_to_tensor(X, "float64"))


WAYS = {
    "eager": {},
    "eager, the layer under XLA": {"jit_compile": True},
    "tf.function": {"function": {}},
    "tf.function under XLA": {"function": {"jit_compile": True}},
}


def prepared(way, form, precision, function, name="simple", **more):
    """The layer, and `function` of it as it runs in that way."""
    import tensorflow as tf

    options = WAYS[way]
    layer = build(form, precision, name, jit_compile=options.get("jit_compile", False), **more)
    return layer, tf.function(function, **options["function"]) if "function" in options else function


DERIVATIVES = {
    "way": list(WAYS),
    "form": list(FORMS),
    "name": list(LAYERS),
    "precision": ["float64", "float32", "mixed_bfloat16"],
    "sequences": [False, True],
}
FLOAT16 = {"way": "eager", "form": "loop", "name": "simple", "precision": "mixed_float16", "sequences": True}


@on_tensorflow
@pytest.mark.parametrize("case", [*pairwise(DERIVATIVES), FLOAT16], ids=case_name)
def test_derivatives_are_the_same_whoever_compiles(case, forms_that_ran):
    way, form, name, precision, sequences = case.values()
    layer, function = prepared(way, form, precision, derivatives, name, return_sequences=sequences)
    outputs, first, second = function(layer, ops.convert_to_tensor(X, layer.variable_dtype))
    assert forms_that_ran == {form}
    assert outputs.dtype == layer.compute_dtype
    assert all(gradient.dtype == layer.variable_dtype for gradient in [*first, *second])
    wanted, wanted_first, wanted_second = expected(derivatives, name, return_sequences=sequences)
    assert_close([outputs, *first], [wanted, *wanted_first], precision)
    assert_close(second, wanted_second, precision, order=2)


@on_tensorflow
@pytest.mark.parametrize("name", ["simple", "any cell, shared and frozen"])
def test_a_layer_can_be_built_within_a_function(name):
    import tensorflow as tf

    outputs = []
    for compiled in (True, False):
        keras.utils.set_random_seed(5)
        layer = LAYERS[name](dtype=DTYPE)
        call = tf.function(layer.__call__, autograph=False) if compiled else layer
        outputs.append(call(ops.convert_to_tensor(X)))
    np.testing.assert_allclose(*outputs, rtol=1e-10)


@on_tensorflow
@pytest.mark.parametrize(
    ("way", "precision", "form"),
    [
        ("eager", "float64", "loop"),
        ("tf.function", "mixed_float16", "written out"),
        ("tf.function under XLA", "float32", "written out"),
        ("tf.function under XLA", "float32", "loop"),
    ],
)
def test_batch_jacobian(way, precision, form, forms_that_ran):
    import tensorflow as tf

    layer, function = prepared(way, form, precision, jacobian)
    x = ops.convert_to_tensor(X, layer.variable_dtype)
    if (way, form) == ("tf.function under XLA", "loop"):  # what vectorises it makes lists of tensors
        with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
            function(layer, x)
        return
    received = function(layer, x)
    assert forms_that_ran == {form}
    assert_close([received], [expected(jacobian)], precision)


class CustomStep(keras.Model):
    """A training loop of a user's own, as Keras's guide writes it."""

    def train_step(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


TRAINING = {
    "way": ["XLA", "graph", "eager"],
    "form": list(FORMS),
    "name": list(LAYERS),
    "precision": ["float32", "mixed_float16", "mixed_bfloat16"],
}
CUSTOM = {"way": "custom step", "form": "loop", "name": "simple", "precision": "float64"}
COMPILED = {"graph": {"jit_compile": False}, "eager": {"run_eagerly": True}}


@on_tensorflow
@pytest.mark.parametrize("case", [*pairwise(TRAINING), CUSTOM], ids=case_name)
def test_training_step_is_the_same_however_it_runs(case, rng, forms_that_ran):
    way, form, name, precision = case.values()
    layer = build(form, precision, name)
    before, y = layer.get_weights(), single(rng.normal(size=(B, U)))
    inputs = keras.Input((T, I), dtype=layer.variable_dtype)
    model = (CustomStep if way == "custom step" else keras.Model)(inputs, layer(inputs))
    loss = keras.losses.MeanSquaredError(dtype=layer.variable_dtype)  # else in single precision
    model.compile(keras.optimizers.SGD(1.0), loss, **COMPILED.get(way, {"jit_compile": True}))
    forms_that_ran.clear()
    model.fit(X, y, batch_size=B, verbose=0)
    assert forms_that_ran == {form}
    reference = build("written out", "float64", name)
    output = to_numpy(reference(X))[0]
    _, gradients = outputs_and_gradients(reference, X, [2 * (output - y) / output.size])
    moved = [old - new for old, new in zip(before, layer.get_weights(), strict=True)]
    trained = len(layer.trainable_weights)
    assert_close(moved[:trained], [gradients[weight] for weight in names(layer)], precision)
    assert not any(move.any() for move in moved[trained:])


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({"jit_compile": True}, "loop"),
        ({"jit_compile": False}, "written out"),
        ({"run_eagerly": True}, "loop"),
    ],
)
def test_predict_with_a_ragged_last_batch(options, form, rng):
    precision = "mixed_bfloat16" if BACKEND == "tensorflow" else "float32"
    if BACKEND == "torch" and options.get("jit_compile"):
        pytest.skip("`jit_compile` is `torch.compile`, which `test_torch_compile` tests")
    x = single(rng.normal(size=(7, T, I)))
    layer = build(form, precision)
    inputs = keras.Input((T, I), dtype=layer.variable_dtype)
    model = keras.Model(inputs, layer(inputs))
    model.compile(**options)
    outputs = model.predict(x, batch_size=3, verbose=0)
    assert_close([outputs], to_numpy(build("written out")(x)), precision)


# JAX.


@on_jax
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", FORMS)
def test_jit_grad_and_vmap_over_stateless_call(form, name, forms_that_ran):
    import jax

    layer = build(form, name=name)
    fixed = [variable.value for variable in layer.non_trainable_variables]

    def call(weights, x):
        return layer.stateless_call(weights, fixed, x)[0]

    def loss(weights, x):
        return (call(weights, x) ** 3).sum()

    weights, x = [weight.value for weight in layer.trainable_weights], ops.convert_to_tensor(X, "float32")
    outputs, gradients = call(weights, x), jax.grad(loss)(weights, x)
    assert forms_that_ran == {form}
    assert_close([jax.jit(call)(weights, x)], [outputs], "float32")
    assert_close([jax.vmap(call, (None, 0))(weights, x[:, None])[:, 0]], [outputs], "float32")
    assert_close(jax.jit(jax.grad(loss))(weights, x), gradients, "float32")
    per_sample = jax.vmap(jax.grad(loss), (None, 0))(weights, x[:, None])
    assert_close([g.sum(axis=0) for g in per_sample], gradients, "float32")
    slopes = jax.jacrev(call, argnums=1)(weights, x)
    cotangents = 3 * outputs**2
    assert_close(
        [np.einsum("bu,bucti->cti", cotangents, slopes)], [jax.grad(loss, argnums=1)(weights, x)], "float32"
    )


@on_jax
def test_forward_mode_is_a_clear_error_in_a_loop_and_works_written_out():
    import jax

    x = ops.convert_to_tensor(X, "float32")
    layer = build("written out")
    _, tangent = jax.jvp(lambda x: layer(x), (x,), (x,))
    (gradient,) = jax.vjp(lambda x: layer(x), x)[1](ops.ones((B, U)))
    np.testing.assert_allclose(tangent.sum(), (gradient * x).sum(), rtol=1e-4)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: build("loop")(x), (x,), (x,))


# Torch.


@on_torch
@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler on the machine")
def test_torch_compile():
    import torch

    layer, x = build(), ops.convert_to_tensor(X, "float32")
    compiled = torch.compile(lambda x: layer(x))
    assert_close([compiled(x).detach()], [layer(x).detach()], "float32")
    gradients = []
    for function in (compiled, layer):
        layer.zero_grad()
        (function(x) ** 3).sum().backward()
        gradients.append([weight.value.grad.clone() for weight in layer.trainable_weights])
    assert_close(*gradients, "float32")
