"""`UntiedRNN` against a Python loop over separately built cells."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, T, U, random_mask, randomised
from check_layer import check_layer
from conftest import BACKEND, DTYPE, EXACT
from example_cells import CELLS, LISTACell, ListOfCells, NestedCell, stacked
from keras import ops

from untied_rnn import UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Blocks, Listed, Periodic

DIAL = {
    "untied": ({}, range(T)),
    "tied": ({"sharing": Blocks(T)}, [0] * T),
    "period": ({"sharing": Periodic(3)}, [0, 1, 2, 0]),
    "index": ({"sharing": Listed([1, 0, 1, 2])}, [1, 0, 1, 2]),
}

# Each cell in a loop and written out; `xla` compiles an iteration of three timesteps.
CASES = [
    ("simple", False, "index", True),
    ("simple", True, "untied", False),
    ("gru", False, "untied", True),
    ("gru", True, "index", False),
    ("gru, reset before", 2, "period", False),
    ("gru, reset before", True, "tied", True),
    ("lstm", False, "tied", False),
    ("lstm", True, "period", True),
    ("lstm", "xla", "untied", True),
    ("stacked", 2, "untied", False),
    ("stacked", True, "index", True),
    ("lista", False, "period", True),
    ("lista", True, "tied", False),
    ("nested", 2, "index", True),
    ("nested", True, "untied", False),
]


@pytest.mark.parametrize(("name", "unroll", "dial", "masked"), CASES)
def test_equals_a_loop_over_cells(name, unroll, dial, masked, rng):
    options, index = DIAL[dial]
    layer = UntiedRNN(
        CELLS[name](),
        timesteps=None if dial == "period" else T,
        return_sequences=True,
        return_state=True,
        unroll=3 if unroll == "xla" else unroll,
        jit_compile=unroll == "xla",
        **options,
    )
    layer.build((B, T, I))
    randomised(layer, rng)
    loop = ListOfCells(CELLS[name], layer.get_weights(), index, dtype=DTYPE)
    x, mask = rng.normal(size=(B, T, I)), random_mask(rng) if masked else None
    states = [rng.normal(size=(B, size)) for size in keras.tree.flatten(layer.state_size)]
    cotangents = [rng.normal(size=(B, T, layer.output_size)), *(rng.normal(size=s.shape) for s in states)]

    outputs, gradients = outputs_and_gradients(layer, x, cotangents, initial_state=states, mask=mask)
    expected, slopes = outputs_and_gradients(loop, x, cotangents, initial_state=states, mask=mask)
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)
    of_inputs = ["x", *(f"initial_state {i}" for i in range(len(states)))]
    for key in of_inputs:
        np.testing.assert_allclose(gradients[key], slopes[key], **EXACT, err_msg=key)
    stacks = [gradient for key, gradient in gradients.items() if key not in of_inputs]
    assert len(stacks) == len(layer.trainable_weights)
    of_cells = iter(v for key, v in slopes.items() if key not in of_inputs)
    for s, cell in enumerate(loop.cells):
        for stack, weight in zip(stacks, cell.trainable_weights, strict=True):
            np.testing.assert_allclose(stack[s], next(of_cells), **EXACT, err_msg=weight.path)


def test_layer_check():
    check_layer(
        UntiedRNN,
        {"cell": keras.layers.LSTMCell(U)},
        weight_shapes={"kernel": (3, 4 * U), "recurrent_kernel": (U, 4 * U), "bias": (4 * U,)},
        output_size=U,
        state_sizes=[U, U],
    )


def test_initial_state_is_the_cells_own(rng):
    layer = UntiedRNN(NestedCell(), return_state=True)
    x = rng.normal(size=(B, T, I)).astype("float32")
    given, own = layer(x, initial_state=np.ones((B, U), "float32")), layer(x)
    for received, wanted in zip(to_numpy(own), to_numpy(given), strict=True):
        np.testing.assert_array_equal(received, wanted)
    assert not np.allclose(to_numpy(layer(x, initial_state=np.zeros((B, U), "float32")))[0], to_numpy(own)[0])


def test_a_stateful_layer_starts_with_the_cells_own_state(rng):
    x = rng.normal(size=(B, T, I)).astype("float32")
    tied = keras.layers.RNN(NestedCell(), stateful=True)
    tied.build((B, T, I))
    layer = UntiedRNN.from_tied(tied, T)
    new = UntiedRNN(NestedCell(), timesteps=T, stateful=True)
    new.build((B, T, I))
    new.set_weights(layer.get_weights())
    for _ in range(2):
        expected = to_numpy(tied(x))[0]
        np.testing.assert_allclose(to_numpy(layer(x))[0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_numpy(new(x))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU])
def test_from_tied_takes_layers_with_a_cell_of_their_own(cls, rng):
    tied = cls(U, return_sequences=True, dropout=0.3, dtype=DTYPE)
    tied.build((B, T, I))
    randomised(tied, rng)
    x = rng.normal(size=(B, T, I))
    layer = UntiedRNN.from_tied(tied, T)
    np.testing.assert_allclose(to_numpy(layer(x))[0], to_numpy(tied(x))[0], **EXACT)


# Weights.


def test_each_timestep_draws_its_weights_as_the_cell_says():
    def options(seed):
        return {
            "kernel_initializer": keras.initializers.RandomNormal(stddev=0.1, seed=seed),
            "recurrent_initializer": keras.initializers.Orthogonal(seed=seed + 1),
            "bias_initializer": keras.initializers.Constant(0.5),
        }

    layer = UntiedRNN(keras.layers.SimpleRNNCell(U, **options(3)), timesteps=T)
    same = UntiedSimpleRNN(U, timesteps=T, **options(3))
    for built in (layer, same):
        built.build((None, T, I))
    for weight, wanted in zip(layer.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, wanted)
    recurrent = ops.convert_to_numpy(layer.recurrent_kernel)
    np.testing.assert_allclose(recurrent @ recurrent.transpose(0, 2, 1), [np.eye(U)] * T, atol=1e-5)
    assert len(np.unique(ops.convert_to_numpy(layer.kernel))) == T * I * U


def test_seeds_within_a_stack_give_each_timestep_its_own_weights():
    def cells():
        return [
            keras.layers.LSTMCell(2, kernel_initializer=keras.initializers.GlorotUniform(seed=1)),
            keras.layers.GRUCell(U, kernel_initializer=keras.initializers.GlorotUniform(seed=2)),
        ]

    first, second = UntiedRNN(cells(), timesteps=T), UntiedRNN(cells(), timesteps=T)
    for layer in (first, second):
        layer.build((None, T, I))
    for weight, other in zip(first.weights, second.weights, strict=True):
        if weight.name.endswith("cell_kernel"):
            np.testing.assert_array_equal(ops.convert_to_numpy(weight), ops.convert_to_numpy(other))
            assert len(np.unique(ops.convert_to_numpy(weight))) == np.prod(weight.shape)


def test_weights_are_named_as_the_cells_are_and_the_cell_stays_unbuilt():
    cell = stacked()
    layer = UntiedRNN(cell, timesteps=T)
    layer.build((None, T, I))
    lstm, gru = (part.name for part in cell.cells)
    kinds = ("kernel", "recurrent_kernel", "bias")
    assert [w.name for w in layer.weights] == [f"{part}_{kind}" for part in (lstm, gru) for kind in kinds]
    assert not cell.built
    assert not cell.weights
    plain = UntiedRNN(NestedCell(), timesteps=T)
    plain.build((None, T, I))
    assert [w.name for w in plain.weights] == [
        f"{part}_{kind}" for part in (plain.cell.dense.name, plain.cell.head.name) for kind in kinds[::2]
    ]


def fitted(layer, rng, rate=0.1):
    """A model of the layer after a step of gradient descent."""
    model = keras.Sequential([keras.Input((T, I)), layer])
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=BACKEND == "jax")
    model.fit(rng.normal(size=(8, T, I)), rng.normal(size=(8, U)), batch_size=8, verbose=0)


def test_regularizers_and_constraints_are_the_cells(rng):
    cell = keras.layers.SimpleRNNCell(
        U, recurrent_regularizer=keras.regularizers.L2(0.5), kernel_constraint=keras.constraints.MaxNorm(0.01)
    )
    layer = UntiedRNN(cell)
    layer.build((None, T, I))
    recurrent = ops.convert_to_numpy(layer.recurrent_kernel)
    (loss,) = layer.losses
    np.testing.assert_allclose(ops.convert_to_numpy(loss), 0.5 * (recurrent**2).sum(), rtol=1e-5)
    fitted(layer, rng)
    norms = np.linalg.norm(ops.convert_to_numpy(layer.kernel), axis=1)
    assert norms.max() <= 0.0101
    assert norms.min() > 0.005  # not projected all together


def test_constants_stay_as_they_are(rng):
    layer = UntiedRNN(LISTACell(U))
    layer.build((None, T, I))
    before = ops.convert_to_numpy(layer.dictionary)
    assert [w.name for w in layer.trainable_weights] == ["w", "theta"]
    fitted(layer, rng)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.dictionary), before)
    assert np.all(ops.convert_to_numpy(layer.theta) != np.float32(0.2))


# Dropout.


@pytest.mark.parametrize(
    ("make", "rates"),
    [
        (keras.layers.SimpleRNNCell, (0.4, 0.3)),
        (keras.layers.GRUCell, (0.4, 0.0)),
        (keras.layers.LSTMCell, (0.0, 0.3)),
        (stacked, (0.4, 0.3)),
    ],
)
def test_dropout_is_that_of_keras(make, rates, rng):
    def cell():
        options = {"dropout": rates[0], "recurrent_dropout": rates[1], "seed": 4}
        return make(**options) if make is stacked else make(U, **options, dtype=DTYPE)

    tied = keras.layers.RNN(cell(), return_sequences=True, dtype=DTYPE)
    tied.build((B, T, I))
    randomised(tied, rng)
    layer = UntiedRNN.from_tied(tied, T)
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    expected, slopes = outputs_and_gradients(tied, x, [cotangent], training=True)
    outputs, gradients = outputs_and_gradients(layer, x, [cotangent], training=True)
    np.testing.assert_allclose(outputs[0], expected[0], **EXACT)
    np.testing.assert_allclose(gradients["x"], slopes["x"], **EXACT)
    first, second, inference = (to_numpy(layer(x, training=training))[0] for training in (True, True, False))
    assert not np.allclose(first, second)
    assert not np.allclose(inference, outputs[0])
    np.testing.assert_allclose(inference, to_numpy(UntiedRNN.from_tied(tied, T)(x))[0], **EXACT)


def test_dropout_in_fit(rng):
    """A program of its own draws other masks at every step: the loss of a model that cannot learn varies."""
    layer = UntiedRNN(keras.layers.SimpleRNNCell(U, dropout=0.5, recurrent_dropout=0.5, seed=1))
    model = keras.Sequential([keras.Input((T, I)), layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND == "jax")
    history = model.fit(rng.normal(size=(8, T, I)), np.ones((8, U)), epochs=3, shuffle=False, verbose=0)
    assert len(set(history.history["loss"])) == 3


# Files and wrappers.


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.layers.GRUCell(U, reset_after=False),
        lambda: keras.layers.StackedRNNCells([keras.layers.LSTMCell(2), keras.layers.SimpleRNNCell(U)]),
        lambda: LISTACell(U),
        NestedCell,
    ],
    ids=["gru", "stacked", "lista", "nested"],
)
def test_files_states_and_wrappers(make, rng, tmp_path):
    options = {"return_sequences": True, "dtype": "float32"}
    inputs = keras.Input((T, I), batch_size=B)
    both = keras.layers.Bidirectional(UntiedRNN(make(), **options))(inputs)
    output, *states = UntiedRNN(make(), stateful=True, return_state=True, sharing=Periodic(3))(both)
    model = keras.Model(inputs, [output, *keras.tree.flatten(states)])
    x = rng.normal(size=(B, T, I)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    first = model.predict(x, verbose=0)
    for received, wanted in zip(loaded.predict(x, verbose=0), first, strict=True):
        np.testing.assert_array_equal(received, wanted)
    second = model.predict(x, verbose=0)  # from where it ended
    assert not np.allclose(second[-1], first[-1])
    model.layers[-1].reset_state()
    np.testing.assert_allclose(model.predict(x, verbose=0)[0], first[0], rtol=1e-6)


def test_states_are_nested_as_those_of_keras(rng):
    x = rng.normal(size=(B, T, I))
    tied = keras.layers.RNN(stacked(), return_state=True, dtype=DTYPE)
    expected = tied(x)
    received = UntiedRNN.from_tied(tied, T)(x)
    assert type(received[1]) is list  # of no kind of Keras's own, which JAX would not look into
    assert [len(keras.tree.flatten(part)) for part in received] == [1, 2, 1]
    assert [len(keras.tree.flatten(part)) for part in expected] == [1, 2, 1]
    for a, b in zip(keras.tree.flatten(received), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(a), ops.convert_to_numpy(b), **EXACT)


def test_dtype_of_the_layer_is_the_cells(rng):
    x = rng.normal(size=(B, T, I))
    # No orthogonal matrices, which TensorFlow does not draw in half precision.
    cells = [
        cls(U, recurrent_initializer="he_normal") for cls in (keras.layers.LSTMCell, keras.layers.GRUCell)
    ]
    layer = UntiedRNN(cells, dtype="bfloat16")
    assert {keras.backend.standardize_dtype(v.dtype) for v in [layer(x), *layer.weights]} == {"bfloat16"}
    tied = keras.layers.RNN(keras.layers.GRUCell(U, dtype="mixed_bfloat16"))
    tied.build((B, T, I))
    assert UntiedRNN.from_tied(tied, T).compute_dtype == "bfloat16"


@pytest.mark.parametrize("unroll", [True, False])
def test_mixed_precision_follows_single(unroll, rng):
    mixed, single = (
        UntiedRNN(keras.layers.LSTMCell(U, dtype=dtype), unroll=unroll)
        for dtype in ("mixed_bfloat16", "float32")
    )
    for layer in (mixed, single):
        layer.build((None, T, I))
    single.set_weights(mixed.get_weights())
    x, cotangent = rng.normal(size=(8, T, I)), rng.normal(size=(8, U))
    gradients = [outputs_and_gradients(layer, x, [cotangent])[1] for layer in (mixed, single)]
    assert keras.backend.standardize_dtype(mixed(x).dtype) == "bfloat16"
    for a, b in zip(*(g.values() for g in gradients), strict=True):
        np.testing.assert_allclose(a.astype("float32"), b, rtol=0, atol=0.05 * np.abs(b).max())


# The program.


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA programs are inspected through TensorFlow")
@pytest.mark.parametrize("dial", [{}, {"sharing": Blocks(2)}])
def test_program_of_the_gradient_does_not_grow_with_time(dial):
    import tensorflow as tf

    def program_length(timesteps):
        layer = UntiedRNN(keras.layers.LSTMCell(U), timesteps=timesteps, unroll=False, **dial)
        layer.build((B, timesteps, I))

        @tf.function(jit_compile=True)
        def function(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x))
            return tape.gradient(loss, [w.value for w in layer.trainable_weights])

        text = function.experimental_get_compiler_ir(tf.zeros((B, timesteps, I)))(stage="hlo")
        return len(text.splitlines())

    assert program_length(100) == program_length(4)


@pytest.mark.skipif(BACKEND != "jax", reason="the operations of a program are counted through JAX")
@pytest.mark.parametrize("dial", [{}, {"sharing": Blocks(2)}])
def test_work_of_the_gradient_is_linear_in_time(dial):
    import jax

    def bytes_accessed(timesteps):
        layer = UntiedRNN(keras.layers.SimpleRNNCell(9), timesteps=timesteps, unroll=False, **dial)
        layer.build((1, timesteps, I))
        fixed = [v.value for v in layer.non_trainable_variables]

        def loss(weights, x):
            return layer.stateless_call(weights, fixed, x)[0].sum()

        weights = [w.value for w in layer.trainable_weights]
        compiled = jax.jit(jax.grad(loss)).lower(weights, ops.ones((1, timesteps, I))).compile()
        return compiled.cost_analysis()["bytes accessed"]

    assert bytes_accessed(64) < 1.5 * 4 * bytes_accessed(16)
