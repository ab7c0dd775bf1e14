"""The base layer's contract: lengths, masks, states, precision, and what it refuses."""

import keras
import numpy as np
import pytest
from autodiff import to_numpy
from conftest import BACKEND

from untied_rnn import UntiedSimpleRNN
from untied_rnn._layers.recurrent import RecurrentLayer, Sequences

B, T, I, U = 3, 4, 2, 5  # noqa: E741 (the letters of the formulas)


@pytest.fixture
def x(rng):
    return rng.normal(size=(B, T, I)).astype("float32")


def close(received, expected):
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


# Timesteps.


def test_timesteps_come_from_the_first_input_and_stay(x):
    layer = UntiedSimpleRNN(U)
    layer(x)
    assert layer.timesteps == layer.get_config()["timesteps"] == T
    with pytest.raises(ValueError, match=r"weights for 4 timesteps.*sequence of 5"):
        layer(np.zeros((B, T + 1, I)))


def test_undefined_time_axis_runs_any_length_up_to_timesteps(x):
    inputs = keras.Input((None, I))
    layer = UntiedSimpleRNN(U, timesteps=T, return_sequences=True)
    model = keras.Model(inputs, layer(inputs))
    for length in (T, 1, 2, 3):
        close(model.predict(x[:, :length], verbose=0), to_numpy(layer(x))[0][:, :length])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has axes defined at run time")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_shapes_known_only_at_run_time_change_nothing(x, rng, jit_compile):
    """With a mask, dropout in time and outputs: all that a length could be missing for."""
    import tensorflow as tf

    mask = rng.random((B, T)) < 0.6
    layers = [
        UntiedSimpleRNN(U, timesteps=T, output_units=2, recurrent_dropout=0.4, seed=1, return_sequences=True)
        for _ in range(2)
    ]
    for layer in layers:
        layer.build((None, None, I))
        layer.set_weights(layers[0].get_weights())
    # Both compiled or both not: XLA draws other random numbers.
    dynamic, static = (
        tf.function(
            lambda x, mask, layer=layer: layer(x, mask=mask, training=True),
            input_signature=[tf.TensorSpec((*shape, I)), tf.TensorSpec(shape, "bool")],
            jit_compile=jit_compile,
        )
        for layer, shape in zip(layers, [(None, None), (B, 3)], strict=True)
    )
    close(dynamic(x[:, :3], mask[:, :3]), static(x[:, :3], mask[:, :3]))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has axes defined at run time")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("timesteps", [1, T])
def test_too_long_at_run_time_is_an_error_not_a_broadcast(x, timesteps, jit_compile):
    import tensorflow as tf

    layer = UntiedSimpleRNN(U, timesteps=timesteps)
    layer.build((None, None, I))
    function = tf.function(
        lambda x: layer(x), input_signature=[tf.TensorSpec((None, None, I))], jit_compile=jit_compile
    )
    close(function(x[:, :timesteps]), to_numpy(layer(x[:, :timesteps]))[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="5"):
        function(np.zeros((B, 5, I), "float32"))


def test_unrolling_needs_a_defined_time_axis():
    layer = UntiedSimpleRNN(U, timesteps=T, unroll=True)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with pytest.raises(ValueError, match="undefined number of timesteps"):
            tf.function(lambda x: layer(x), input_signature=[tf.TensorSpec((None, None, I))])(
                np.zeros((B, T, I), "float32")
            )
    with pytest.raises(ValueError, match="undefined number of timesteps"):
        layer(keras.Input((None, I)))


# Masks.


@pytest.mark.parametrize("form", ["bool", "int", "rank 3", "list"])
def test_mask_forms(x, rng, form):
    layer = UntiedSimpleRNN(U)
    mask = rng.random((B, T)) < 0.5
    expected = to_numpy(layer(x, mask=mask))[0]
    assert not np.allclose(expected, to_numpy(layer(x))[0])
    other = {"bool": mask, "int": mask.astype("int32"), "rank 3": mask[:, :, None], "list": [mask]}[form]
    close(to_numpy(layer(x, mask=other))[0], expected)


def test_implicit_mask_acts_and_is_handed_on(x):
    x[0, 2:], x[1, 0], x[2] = 0, 0, 0
    first, second = UntiedSimpleRNN(U, return_sequences=True), UntiedSimpleRNN(U)
    model = keras.Sequential([keras.Input((T, I)), keras.layers.Masking(), first, second])
    mask = (x != 0).any(axis=-1)
    expected = to_numpy(second(first(x, mask=mask), mask=mask))[0]
    close(model.predict(x, verbose=0), expected)
    assert not np.allclose(expected, to_numpy(second(first(x)))[0])


def test_implicit_mask_acts_beside_an_initial_state(x):
    """Keras does not hand the mask on where there is a second tensor argument."""
    x[0, 2:] = 0
    state = np.ones((B, U), "float32")
    layer = UntiedSimpleRNN(U)
    expected = to_numpy(layer(x, initial_state=state, mask=(x != 0).any(axis=-1)))[0]
    close(to_numpy(layer(keras.layers.Masking()(x), initial_state=state))[0], expected)
    inputs, states = keras.Input((T, I)), keras.Input((U,))
    model = keras.Model([inputs, states], layer(keras.layers.Masking()(inputs), initial_state=states))
    close(model.predict([x, state], verbose=0), expected)


def test_masked_steps_do_not_read_their_input(x):
    """Not even a NaN in the padding."""
    mask = np.ones((B, T), bool)
    mask[0, 1:3] = False
    poisoned = np.where(mask[:, :, None], x, np.nan)
    layer = UntiedSimpleRNN(U)
    close(to_numpy(layer(poisoned, mask=mask))[0], to_numpy(layer(x, mask=mask))[0])


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_compute_mask_is_that_of_keras(x, return_sequences, return_state):
    options = {"return_sequences": return_sequences, "return_state": return_state}
    mask = keras.ops.ones((B, T), "bool")
    assert UntiedSimpleRNN(U, **options).supports_masking
    for given in (mask, [mask], [mask, None], None):
        expected = keras.layers.SimpleRNN(U, **options).compute_mask(x, given)
        received = UntiedSimpleRNN(U, **options).compute_mask(x, given)
        assert str(received) == str(expected)


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_compute_output_shape_is_that_of_keras(return_sequences, return_state):
    options = {"return_sequences": return_sequences, "return_state": return_state}
    for shape in ((None, T, I), (B, T, I), (B, None, I)):
        expected = keras.layers.SimpleRNN(U, **options).compute_output_shape(shape)
        assert UntiedSimpleRNN(U, timesteps=T, **options).compute_output_shape(shape) == expected


# States.


def test_initial_state_forms(x, rng):
    state = rng.normal(size=(B, U)).astype("float32")
    layer = UntiedSimpleRNN(U)
    expected = to_numpy(layer(x, initial_state=state))[0]
    assert not np.allclose(expected, to_numpy(layer(x))[0])
    close(to_numpy(layer(x, initial_state=[state]))[0], expected)
    close(to_numpy(layer(x, initial_state=layer.get_initial_state(B)))[0], to_numpy(layer(x))[0])


def test_large_states_are_compared_by_their_size(x):
    """CPython has one object for each small integer only."""
    layer = UntiedSimpleRNN(300)
    close(to_numpy(layer(x, initial_state=np.zeros((B, 300), "float32")))[0], to_numpy(layer(x))[0])


def test_encoder_decoder_trains_through_the_state(x):
    inputs = keras.Input((T, I))
    _, state = UntiedSimpleRNN(U, return_state=True)(inputs)
    outputs = UntiedSimpleRNN(U, return_sequences=True)(inputs, initial_state=state)
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    before = model.layers[1].get_weights()
    model.fit(x, np.ones((B, T, U)), verbose=0)
    for weight, old, new in zip(model.layers[1].weights, before, model.layers[1].get_weights(), strict=True):
        moved = np.abs(new - old).reshape(T, -1).max(axis=1)
        first = 1 if weight.name == "recurrent_kernel" else 0  # the first one multiplies h_0 = 0
        assert moved[first:].min() > 0


def stateful_model():
    inputs = keras.Input(batch_shape=(B, T, I))
    layer = UntiedSimpleRNN(U, stateful=True)
    return keras.Model(inputs, layer(inputs)), layer


def test_stateful_carries_on_from_the_first_weight_set(x):
    model, layer = stateful_model()
    free = UntiedSimpleRNN(U)
    free.build((B, T, I))
    free.set_weights(layer.get_weights())
    state = np.zeros((B, U), "float32")
    for _ in range(3):
        state = to_numpy(free(x, initial_state=state))[0]
        close(model.predict(x, batch_size=B, verbose=0), state)
    layer.reset_state()
    close(model.predict(x, batch_size=B, verbose=0), to_numpy(free(x))[0])
    layer.reset_states()
    assert np.all(keras.ops.convert_to_numpy(layer.states[0]) == 0)


def test_stateful_carries_on_in_training_on_every_backend(x):
    model, layer = stateful_model()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    free = UntiedSimpleRNN(U)
    free.build((B, T, I))
    free.set_weights(layer.get_weights())
    model.fit(np.concatenate([x, -x]), np.zeros((2 * B, U)), batch_size=B, shuffle=False, verbose=0)
    expected = free(-x, initial_state=free(x))
    close(keras.ops.convert_to_numpy(layer.states[0]), to_numpy(expected)[0])


def test_states_are_no_weights():
    model, layer = stateful_model()
    assert len(layer.weights) == 3
    assert any(v is layer.states[0] for v in model.non_trainable_variables)
    assert UntiedSimpleRNN(U).states is None


# Precision.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_low_precision_follows_float32(x, policy):
    # Keras's orthogonal initializer has no bfloat16 version on TensorFlow.
    layer = UntiedSimpleRNN(U, return_state=True, recurrent_initializer="glorot_uniform", dtype=policy)
    outputs = layer(x)
    reference = UntiedSimpleRNN(U, return_state=True)
    reference.build(x.shape)
    reference.set_weights([keras.ops.cast(w, "float32") for w in layer.weights])
    for low, full in zip(outputs, reference(x), strict=True):
        assert keras.backend.standardize_dtype(low.dtype) == layer.compute_dtype
        np.testing.assert_allclose(to_numpy(keras.ops.cast(low, "float32"))[0], to_numpy(full)[0], atol=0.05)


# Refusals.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer, x: layer(x[0]), "ndim=3"),
        (lambda layer, x: layer(x[None]), "ndim=3"),
        (lambda layer, x: layer(x[:, :, :1]), "axis 2"),
        (lambda layer, x: layer(x, mask=np.ones((B, T + 1), bool)), r"mask of shape \(3, 4\)"),
        (lambda layer, x: layer(x, mask=np.ones((B, 1), bool)), r"mask of shape \(3, 4\)"),
        (lambda layer, x: layer(x, mask=np.ones((T,), bool)), r"mask of shape \(3, 4\)"),
        (lambda layer, x: layer(x, initial_state=np.ones((B, U + 1))), r"\(3, 5\)\].*\(3, 6\)"),
        (lambda layer, x: layer(x, initial_state=np.ones((1, U))), r"\(3, 5\)\].*\(1, 5\)"),
        (lambda layer, x: layer(x, initial_state=[np.ones((B, U))] * 2), r"\(3, 5\)\].*\(3, 5\), \(3, 5\)"),
        (lambda layer, x: layer(x, initial_state=[]), "expected initial states"),
        (lambda layer, x: layer(x, initial_state=1.0), r"\(3, 5\)\].*\(\)\]"),
        (lambda layer, x: layer(x, initial_state=np.ones((B, U)).tolist()), r"\(3, 5\)\].*\(5,\), \(5,\)"),
        (lambda layer, x: layer(x, mask=True), r"mask of shape \(3, 4\).*\(\)"),
        (lambda layer, x: layer(x, mask=np.ones((B, T, 2), bool)), r"mask of shape \(3, 4\)"),
        (lambda layer, x: layer(x, mask=np.ones((B, T), bool).tolist()), r"mask of shape \(3, 4\).*\(4,\)"),
        (lambda layer, x: layer([x, x]), "1 input"),
        (lambda layer, x: layer(x[:, :0]), "at least one timestep"),
        (lambda layer, x: layer.set_weights(layer.get_weights()[:2]), "length 2"),
        (lambda layer, x: layer.set_weights([w[0] for w in layer.get_weights()]), r"\(4, 2, 5\).*\(2, 5\)"),
        # Before there are any numbers.
        (lambda layer, x: layer(keras.Input((T, I + 1))), "axis 2"),
        (lambda layer, x: layer(keras.Input((T + 1, I))), r"4 timesteps.*sequence of 5"),
        (lambda layer, x: layer(keras.Input((T, I)), initial_state=keras.Input((U + 1,))), r"5\)\].*6\)\]"),
        (
            lambda layer, x: layer(keras.Input((T, I)), initial_state=[keras.Input((U,))] * 2),
            "expected initial",
        ),
    ],
)
def test_wrong_calls(call, message, x):
    layer = UntiedSimpleRNN(U)
    layer(x)
    with pytest.raises(ValueError, match=message):
        call(layer, x)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((B, I), {}, r"\(3, 2\)"),
        ((B, 0, I), {}, "at least one timestep"),
        ((B, T, None), {}, "axes after the timesteps"),
        ((B, None, I), {}, "timesteps=None"),
        ((B, T + 1, I), {"timesteps": T}, r"4 timesteps.*sequence of 5"),
        ((None, T, I), {"stateful": True}, "batch size"),
        ([(B, T, I), (B, U)], {}, "input of shape"),
    ],
)
def test_wrong_builds(shape, options, message):
    layer = UntiedSimpleRNN(U, **options)
    with pytest.raises(ValueError, match=message):
        layer.build(shape)
    assert not layer.built
    layer.build((B, T, I))  # a failed attempt leaves nothing behind
    assert layer.timesteps == T
    assert len(layer.weights) == 3


def test_stateful_layer_refuses_another_batch_size(x):
    _, layer = stateful_model()
    before = to_numpy(layer(x))[0]
    for sequences, states in [
        (x[:2], None),
        (x[:2], np.ones((2, U), "float32")),
        (keras.Input(batch_shape=(2, T, I)), None),
    ]:
        with pytest.raises(ValueError, match=r"expected batch size 3.*Received: batch size 2"):
            layer(sequences, initial_state=states)
    with pytest.raises(ValueError, match=r"\(3, 5\)\].*\(2, 5\)"):
        layer(x, initial_state=np.ones((2, U), "float32"))
    close(keras.ops.convert_to_numpy(layer.states[0]), before)
    assert layer(keras.Input((T, I))).shape == (None, U)  # whose batch size is not known yet


# What a subclass supplies.

ARGUMENTS = dict.fromkeys(["timesteps", "sharing", "frozen_timesteps"])
ARGUMENTS |= dict.fromkeys(["return_sequences", "return_state", "go_backwards", "stateful", "unroll"], False)
ARGUMENTS |= {"zero_output_for_mask": False, "jit_compile": "auto"}


class Sums(RecurrentLayer):
    """No more than a subclass must define, and two states: `s_t = s_{t-1} + w_t x_t`, and sums of means."""

    state_size = (I, 1)
    output_size = 1

    def __init__(self, **options):
        super().__init__(ARGUMENTS | options)

    def build_weights(self, step_shape):
        self.weight = self.add_timestep_weight("weight", step_shape, keras.initializers.RandomNormal())

    def recurrence(self, sequences):
        assert sequences.random == {}
        sums = sequences.states[0] + keras.ops.cumsum(
            sequences.inputs * sequences.weights["weight"][0][:, None], axis=0
        )
        means = sequences.states[1] + keras.ops.mean(sums, axis=-1, keepdims=True)
        return means, [sums[-1], means[-1]]


def test_a_subclass_is_its_weights_and_its_recurrence(x, rng):
    layer = Sums(return_sequences=True, return_state=True)
    states = [rng.normal(size=(B, size)).astype("float32") for size in (I, 1)]
    received = to_numpy(layer(x, initial_state=states))
    sums = states[0][:, None] + np.cumsum(x * layer.get_weights()[0], axis=1)
    means = states[1][:, None] + sums.mean(axis=-1, keepdims=True)
    for value, expected in zip(received, (means, sums[:, -1], means[:, -1]), strict=True):
        close(value, expected)
    symbolic = layer(keras.Input((T, I)), initial_state=[keras.Input((I,)), keras.Input((1,))])
    assert [tuple(value.shape) for value in symbolic] == [(None, T, 1), (None, I), (None, 1)]
    for wrong in (states[::-1], states[:1], states[0], [*states, states[0]]):
        with pytest.raises(ValueError, match=r"\[\(3, 2\), \(3, 1\)\] for a batch of 3. Received"):
            layer(x, initial_state=wrong)


def test_all_states_of_a_stateful_subclass_carry_on(x):
    layer = Sums(stateful=True, return_state=True)
    first = layer(x)
    second = to_numpy(layer(x))
    free = Sums(return_state=True)
    free.build(x.shape)
    free.set_weights(layer.get_weights())
    for value, expected in zip(second, to_numpy(free(x, initial_state=list(first[1:]))), strict=True):
        close(value, expected)


def test_base_layer_says_what_a_subclass_must_define(x):
    layer = RecurrentLayer(ARGUMENTS)
    with pytest.raises(NotImplementedError, match="build_weights"):
        layer.build(x.shape)
    with pytest.raises(NotImplementedError, match="recurrence"):
        layer.recurrence(Sequences(x, [], None, {}, None, {}, False))
