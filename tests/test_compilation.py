"""The form that the computation takes, and what compiles it."""

import gc
import os
import re
import shutil
import subprocess
import sys
import textwrap
import weakref

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients
from conftest import BACKEND
from keras import ops

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn._layers import rnn as cell_rnn
from untied_rnn._loops import recurrence
from untied_rnn._loops.compilation import WrittenOut, fastest_form

B, T, I, U = 3, 4, 2, 5  # noqa: E741 (the letters of the formulas)

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="`tf.function` is TensorFlow's")


@pytest.fixture
def x(rng):
    return rng.normal(size=(B, T, I)).astype("float32")


@pytest.fixture
def machine_with(monkeypatch):
    """Makes the machine one with so many GPUs, as far as Keras says."""

    def pretend(gpus):
        devices = ["cpu:0", *(f"gpu:{i}" for i in range(gpus))]
        monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)

    return pretend


def close(received, expected):
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture
def forms(monkeypatch):
    """The `unroll` of every loop that runs."""
    received, scan = [], recurrence.scan

    def spy(*args, unroll, **options):
        received.append(unroll)
        return scan(*args, unroll=unroll, **options)

    for module in (recurrence, cell_rnn):
        monkeypatch.setattr(module, "scan", spy)
    return received


@pytest.mark.parametrize(("unroll", "form"), [(False, False), (True, True), (2, 2), ("auto", True)])
def test_unroll_reaches_every_loop(x, unroll, form, forms):
    layer = UntiedSimpleRNN(U, unroll=unroll)
    layer.build(x.shape)
    outputs_and_gradients(layer, x, [np.ones((B, U))], mask=np.ones((B, T), bool))
    assert len(forms) >= 2  # the states, the held outputs, and what gradients there are
    assert set(forms) == {form}


@pytest.mark.parametrize("unroll", [False, True, 2, "auto"])
def test_one_layer_processes_sequences_of_many_lengths(x, unroll):
    layer = UntiedSimpleRNN(U, timesteps=T, return_sequences=True, unroll=unroll)
    whole = ops.convert_to_numpy(layer(x))
    for length in (*range(1, T), T):
        received = ops.convert_to_numpy(layer(x[:, :length]))
        np.testing.assert_allclose(received, whole[:, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("timesteps", "written_out"), [(1, True), (32, True), (33, False), (None, False)])
@pytest.mark.parametrize("compiler", ["xla", "graph", "eager"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_few_timesteps_are_written_out_and_others_are_a_loop(
    timesteps, written_out, compiler, gpus, machine_with
):
    machine_with(gpus)
    few = WrittenOut(**{"xla": 0, "graph": 0, "eager": 0, compiler: 32})
    on_gpu = gpus and compiler == "xla" and BACKEND != "torch"
    assert fastest_form(timesteps, compiler, few) is (4 if on_gpu else written_out)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX starts when its devices are listed")
def test_a_layer_can_be_made_before_jax_starts(monkeypatch):
    """For `keras.distribution.initialize` must come before."""
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: pytest.fail("devices were listed"))
    UntiedSimpleRNN(U)


@on_tensorflow
@pytest.mark.parametrize(
    ("make", "written_out"),
    [
        (lambda: UntiedSimpleRNN(U), {"graph", "xla", "eager"}),
        (lambda: UntiedLSTM(U), {"graph"}),
        (lambda: UntiedRNN(keras.layers.GRUCell(U)), {"graph", "xla"}),
    ],
    ids=["simple", "gated", "any cell"],
)
@pytest.mark.parametrize("compiler", ["xla", "graph", "eager"])
def test_the_form_depends_on_what_compiles_the_layer(x, make, written_out, compiler, forms):
    import tensorflow as tf

    layer = make()
    layer.build(x.shape)
    call = layer if compiler == "eager" else tf.function(lambda x: layer(x), jit_compile=compiler == "xla")
    call(tf.constant(x))
    assert forms == [compiler in written_out]


def training_step(layer, x):
    """The loss and the gradients of all weights, by TensorFlow."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) ** 2)
    return loss, tape.gradient(loss, [weight.value for weight in layer.trainable_weights])


def xla_programs(function, *args):
    """The functions within a graph that XLA must compile."""
    import tensorflow as tf

    graph = tf.function(lambda *args: function(*args), autograph=False).get_concrete_function(*args).graph
    return [f.signature.name for f in graph.as_graph_def().library.function if f.attr["_XlaMustCompile"].b]


@on_tensorflow
@pytest.mark.parametrize(
    ("jit_compile", "gpus", "xla"),
    [(False, 1, False), (True, 0, True), ("auto", 0, False), ("auto", 1, True)],
)
def test_jit_compile_decides_whether_xla_runs(x, jit_compile, gpus, xla, machine_with):
    import tensorflow as tf

    machine_with(gpus)
    layer = UntiedSimpleRNN(U, jit_compile=jit_compile)
    layer(x)
    assert bool(xla_programs(layer, tf.constant(x))) == xla


@on_tensorflow
def test_without_xla_a_graph_holds_the_layer_itself(x):
    """And not a function of its own, which other compilers would have to inline."""
    import tensorflow as tf

    layer = UntiedSimpleRNN(U, unroll=True)
    graph = tf.function(lambda x: layer(x), autograph=False).get_concrete_function(tf.constant(x)).graph
    assert not [op.type for op in graph.get_operations() if "PartitionedCall" in op.type]


ALL = {
    "written out": lambda: UntiedSimpleRNN(U, unroll=True, jit_compile=True),
    "loop": lambda: UntiedSimpleRNN(U, unroll=False, jit_compile=True),
    "masked": lambda: keras.Sequential([keras.layers.Masking(), UntiedLSTM(U, jit_compile=True)]),
    "any cell": lambda: UntiedRNN(keras.layers.GRUCell(U), jit_compile=True),
    "both directions": lambda: keras.layers.Bidirectional(UntiedGRU(U, jit_compile=True)),
}


@on_tensorflow
@pytest.mark.parametrize("name", ALL)
def test_no_program_of_xla_stands_within_another(x, name):
    import tensorflow as tf

    layer = ALL[name]()
    layer.build(x.shape)

    def nested(x):
        """With the layer in a branch as well, whose graph lies within the program's."""
        loss, gradients = training_step(layer, x)
        return tf.cond(loss > 0, lambda: training_step(layer, x), lambda: (loss, gradients))

    x = tf.constant(x)
    assert xla_programs(layer, x)  # where nothing around compiles
    program = tf.function(nested, jit_compile=True, autograph=False)
    assert len(xla_programs(program, x)) == 1  # the program itself
    if name == "loop":  # to compile the others takes longest of all
        received, expected = (tf.nest.flatten(result) for result in (program(x), training_step(layer, x)))
        for value, wanted in zip(received, expected, strict=True):
            close(value, wanted)


@pytest.mark.release
@on_tensorflow
def test_fit_and_predict_are_compiled_once_for_each_shape():
    """Counted in TensorFlow's log: each line says how often a program has been compiled by now."""
    script = """
        import keras, numpy as np
        from untied_rnn import UntiedGRU, UntiedRNN, UntiedSimpleRNN
        layers = [
            UntiedSimpleRNN(2, return_sequences=True, unroll=False, jit_compile=True),
            UntiedGRU(2, return_sequences=True, jit_compile=True),
            UntiedRNN(keras.layers.SimpleRNNCell(2), jit_compile=True),
        ]
        model = keras.Sequential([keras.Input((3, 2)), *layers])
        model.compile("sgd", "mse", jit_compile=True)
        model.fit(np.ones((8, 3, 2)), np.ones((8, 2)), batch_size=2, epochs=2, verbose=0)
        model.predict(np.ones((8, 3, 2)), batch_size=2, verbose=0)
    """
    log = {"TF_CPP_VMODULE": "device_compilation_profiler=1", "TF_CPP_MIN_LOG_LEVEL": "0"}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, **log},
        capture_output=True,
        text=True,
        check=True,
    )
    times = re.findall(r"Compiled \w*one_step\w* (\d+) times", ran.stderr)
    assert times == ["1", "1"]  # a training step and a prediction


@on_tensorflow
def test_a_layer_built_within_a_compiled_program_has_the_right_numbers(x):
    import tensorflow as tf

    layers = [UntiedSimpleRNN(U, jit_compile=True), UntiedLSTM(U, unroll=True, jit_compile=True)]
    for layer in layers:
        received = tf.function(layer.__call__, jit_compile=True, autograph=False)(tf.constant(x))
        fresh = type(layer).from_config(layer.get_config() | {"jit_compile": False})
        fresh.build(x.shape)
        fresh.set_weights(layer.get_weights())
        close(received, fresh(x))


@on_tensorflow
@pytest.mark.parametrize(("activation", "masked"), [("tanh", True), ("silu", False)])
def test_compiled_layer_has_second_order_gradients_in_eager_mode(activation, masked, rng):
    import tensorflow as tf

    results = []
    x, mask = tf.constant(rng.normal(size=(B, T, I))), rng.random((B, T)) < 0.6 if masked else None
    weights = None
    for jit_compile in (False, True):
        layer = UntiedSimpleRNN(U, activation=activation, jit_compile=jit_compile, dtype="float64")
        layer.build((B, T, I))
        weights = weights or layer.get_weights()
        layer.set_weights(weights)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch(x)
                value = tf.reduce_sum(layer(x, mask=mask) ** 2)
            penalty = tf.reduce_sum(inner.gradient(value, x) ** 2)
        results.append(outer.gradient(penalty, [w.value for w in layer.weights]))
    for plain, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-9)


@on_tensorflow
def test_new_batch_sizes_are_traced_twice_at_most(x, monkeypatch):
    layer = UntiedSimpleRNN(U, timesteps=T)
    traces = []
    recurrence = UntiedSimpleRNN.recurrence
    monkeypatch.setattr(UntiedSimpleRNN, "recurrence", lambda *args: traces.append(1) or recurrence(*args))
    for batch in (1, 2, 3, 1, 2, 3):
        layer(x[:batch])
    assert len(traces) == 2


@on_tensorflow
def test_many_layers_are_no_frequent_tracing(x, caplog):
    for _ in range(8):
        UntiedSimpleRNN(U)(x)
    assert "retracing" not in caplog.text


@on_tensorflow
@pytest.mark.parametrize(
    "make",
    [lambda: UntiedLSTM(U), lambda: UntiedRNN(keras.layers.LSTMCell(U), unroll=True)],
    ids=["lstm", "cell"],
)
def test_a_layer_and_its_graphs_are_freed(x, make):
    """TensorFlow keeps custom gradients, and all that they refer to, for ever."""
    import tensorflow as tf

    def train():
        layer = make()
        graphs = []

        @tf.function(autograph=False)
        def step(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x))
            graphs.append(weakref.ref(loss.graph))
            return tape.gradient(loss, [weight.value for weight in layer.trainable_weights])

        step(x)
        outputs_and_gradients(layer, x, [np.ones((B, U))])
        return [weakref.ref(layer), *graphs]

    left = train()
    gc.collect()
    assert {reference() for reference in left} == {None}


def test_fit_is_the_same_however_it_runs(x):
    # What PyTorch compiles takes a C++ compiler.
    compiled = [{"jit_compile": True}] if BACKEND != "torch" or shutil.which("c++") else []
    results = []
    for options in ({"run_eagerly": True}, {"jit_compile": False}, *compiled):
        keras.utils.set_random_seed(3)
        model = keras.Sequential([keras.Input((T, I)), UntiedSimpleRNN(U)])
        model.compile(keras.optimizers.SGD(0.1), "mse", **options)
        history = model.fit(x, np.ones((B, U)), epochs=2, batch_size=2, shuffle=False, verbose=0)
        results.append([*history.history["loss"], *model.layers[0].get_weights()])
        for received, expected in zip(results[-1], results[0], strict=True):
            np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-6, err_msg=str(options))
