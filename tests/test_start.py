"""Sequences that begin at any timestep, against layers with weights for each one of a longer sequence."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, U, randomised
from conftest import BACKEND, DTYPE, EXACT
from reference_check import parameter_gradients, weights_along_time

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic

T, LONG = 5, 12
FAMILY = {
    "simple": lambda **k: UntiedSimpleRNN(U, output_units=2, dtype=DTYPE, **k),
    "lstm": lambda **k: UntiedLSTM(U, dtype=DTYPE, **k),
    "any cell": lambda **k: UntiedRNN(keras.layers.GRUCell(U, dtype=DTYPE), dtype=DTYPE, **k),
    "dense": lambda **k: UntiedDense(U, "tanh", dtype=DTYPE, **k),
}
CYCLES = {
    "period": {"sharing": Periodic(3)},
    "low rank": {"sharing": LowRank(1, Periodic(4))},
    "parts": {"kernel_sharing": Periodic(2), "recurrent_sharing": "tied", "bias_sharing": Periodic(3)},
    "frozen": {"sharing": Periodic(3), "frozen_timesteps": [1]},
}
FORMS = [
    {"return_sequences": True, "unroll": False},
    {"unroll": True},
    {"go_backwards": True, "return_sequences": True},
]
# Each layer and each form twice, and all cycles.
CASES = [
    ("simple", "period", FORMS[0]),
    ("simple", "low rank", FORMS[1]),
    ("simple", "frozen", FORMS[2]),
    ("lstm", "parts", FORMS[0]),
    ("lstm", "period", FORMS[1]),
    ("any cell", "low rank", FORMS[2]),
    ("any cell", "frozen", FORMS[0]),
    ("dense", "low rank", {}),
    ("dense", "frozen", {}),
]


def built(name, rng, length=None, **options):
    layer = FAMILY[name](**options)
    layer.build((None, length, I))
    return randomised(layer, rng)


def unrolled(name, layer, **options):
    """The layer with weights of its own for each of many timesteps."""
    untied = FAMILY[name](timesteps=LONG, **options)
    untied.build((None, LONG, I))
    untied.set_weights(list(weights_along_time(layer, LONG).values()))
    return untied


@pytest.mark.parametrize(("name", "cycle", "form"), CASES)
def test_each_sample_begins_with_the_weights_of_its_start(name, cycle, form, rng):
    layer = built(name, rng, **CYCLES[cycle], **form)
    untied = unrolled(name, layer, **form)
    x, starts = rng.normal(size=(B, T, I)), np.array([1, 0, 6])
    kwargs = {} if name == "dense" else {"mask": rng.random((B, T)) < 0.8}
    cotangent = rng.normal(size=layer.compute_output_shape((B, T, I)))
    received, gradients = outputs_and_gradients(layer, x, [cotangent], start=starts, **kwargs)
    total = {}
    for i, start in enumerate(starts.tolist()):
        one = slice(i, i + 1)
        of_one = {key: value[one] for key, value in kwargs.items()}
        expected, slopes = outputs_and_gradients(untied, x[one], [cotangent[one]], start=start, **of_one)
        np.testing.assert_allclose(received[0][one], expected[0], **EXACT)
        np.testing.assert_allclose(gradients["x"][one], slopes["x"], **EXACT)
        total = {key: total.get(key, 0) + slope for key, slope in slopes.items()}
        same = (start, np.int64(start), keras.ops.convert_to_tensor(start))[i]  # for all samples
        np.testing.assert_allclose(to_numpy(layer(x[one], start=same, **of_one))[0], expected[0], **EXACT)
    for key, wanted in parameter_gradients(layer, total).items():
        np.testing.assert_allclose(gradients[key], wanted, **EXACT, err_msg=key)


@pytest.mark.parametrize(
    "sharing", ["untied", Blocks(5), Listed([0, 1, 2] * 4), LowRank(1), Basis(3)], ids=str
)
@pytest.mark.parametrize("name", ["simple", "any cell", "dense"])
def test_layers_with_so_many_timesteps_begin_anywhere_within(name, sharing, rng):
    layer = built(name, rng, LONG, sharing=sharing)
    untied = unrolled(name, layer)
    x = rng.normal(size=(B, LONG, I))
    for i, start in enumerate((0, 2, LONG - T)):
        late = FAMILY[name](timesteps=T)
        late.build((None, T, I))
        late.set_weights([w[start : start + T] for w in untied.get_weights()])
        same = (start, np.int64(start), keras.ops.convert_to_tensor(start))[i]
        (received,) = to_numpy(layer(x[:, :T], start=same))
        np.testing.assert_allclose(received, to_numpy(late(x[:, :T]))[0], **EXACT)


def test_a_model_takes_starts_as_an_input(rng, tmp_path):
    hours, first_hour = keras.Input((None, I)), keras.Input((), dtype="int32")
    model = keras.Model([hours, first_hour], UntiedLSTM(U, sharing=Periodic(3))(hours, start=first_hour))
    model.compile("sgd", "mse")
    x, starts = rng.normal(size=(8, T, I)).astype("float32"), np.arange(8, dtype="int32")
    model.fit([x, starts], rng.normal(size=(8, U)), verbose=0)
    expected = model.predict([x, starts], verbose=0)
    assert not np.allclose(model.predict([x, 0 * starts], verbose=0)[1], expected[1])
    np.testing.assert_allclose(model.predict([x, starts + 3], verbose=0), expected, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict([x, starts], verbose=0), expected)


@pytest.mark.parametrize("name", ["simple", "any cell"])
def test_a_stateful_layer_goes_on_with_the_next_weights(name, rng):
    stream = FAMILY[name](sharing=Periodic(3), stateful=True, return_sequences=True)
    stream.build((B, None, I))
    randomised(stream, rng)
    whole = FAMILY[name](sharing=Periodic(3), return_sequences=True)
    whole.build((B, None, I))
    whole.set_weights(stream.get_weights())
    x = rng.normal(size=(B, 9, I))
    for start in (0, 2):
        expected = to_numpy(whole(x, start=start))[0]
        parts = [x[:, :2], x[:, 2:3], x[:, 3:]]
        firsts = [{"start": start}, {}, {}] if start else [{}, {}, {}]
        received = [to_numpy(stream(part, **first))[0] for part, first in zip(parts, firsts, strict=True)]
        np.testing.assert_allclose(np.concatenate(received, axis=1), expected, **EXACT)
        stream.reset_state()
    assert stream.get_weights()[0].shape[0] == 3  # the position is no weight


def test_predict_goes_on_with_the_next_weights(rng):
    inputs = keras.Input(batch_shape=(1, 2, I))
    model = keras.Model(inputs, UntiedGRU(U, sharing=Periodic(3), stateful=True)(inputs))
    x = rng.normal(size=(4, 2, I)).astype("float32")
    received = model.predict(x, batch_size=1, verbose=0)
    whole = UntiedGRU(U, sharing=Periodic(3), return_sequences=True)
    whole.build((1, None, I))
    whole.set_weights(model.get_weights())
    expected = to_numpy(whole(x.reshape(1, 8, I)))[0][0, 1::2]
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "start", "error", "message"),
    [
        ({"timesteps": 6}, 2, ValueError, r"ends within the 6 timesteps.*start=2, for 5 timesteps"),
        ({"timesteps": 6}, -1, ValueError, "start=-1"),
        ({"timesteps": 6}, 1.0, TypeError, r"an integer as `start`.*as with `Periodic`"),
        ({"timesteps": 6}, True, TypeError, "an integer as `start`"),
        ({"timesteps": 6}, np.bool_(True), TypeError, "an integer as `start`"),
        ({"timesteps": 6}, np.array([0, 1, 0]), TypeError, "weights for any number of timesteps"),
        ({"sharing": Periodic(3)}, 0.5, TypeError, "Expected integers as `start`"),
        ({"sharing": Periodic(3)}, np.array([0, 1]), ValueError, r"shape \(2,\), for a batch of 3"),
        ({"sharing": Periodic(3)}, np.zeros((3, 1), int), ValueError, r"shape \(3, 1\), for a batch of 3"),
        ({"sharing": Periodic(3), "stateful": True}, np.array([0, 1, 0]), ValueError, "carries it on"),
    ],
)
def test_wrong_starts(options, start, error, message):
    layer = UntiedGRU(U, **options)
    with pytest.raises(error, match=message):
        layer(np.zeros((B, T, I), "float32"), start=start)


@pytest.mark.parametrize("make", [UntiedGRU, UntiedDense])
@pytest.mark.parametrize(
    ("options", "start", "error", "message"),
    [
        ({}, keras.Input((), dtype="int32"), TypeError, "an integer as `start`"),
        ({"sharing": Periodic(3)}, keras.Input(()), TypeError, "Expected integers as `start`"),
        ({"sharing": Periodic(3)}, keras.Input((1,), dtype="int32"), ValueError, r"shape \(None, 1\)"),
    ],
)
def test_wrong_start_is_an_error_where_the_model_is_made(make, options, start, error, message):
    with pytest.raises(error, match=message):
        make(U, **options)(keras.Input((T, I)), start=start)


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")
def test_a_tensor_of_starts_needs_no_new_program(rng):
    layer = built("lstm", rng, sharing=Periodic(3))
    x = rng.normal(size=(B, T, I)).astype("float32")
    traced = []
    recurrence = layer.recurrence
    layer.recurrence = lambda sequences: (traced.append(1), recurrence(sequences))[1]
    if BACKEND == "tensorflow":
        call = layer
    else:
        import jax

        call = jax.jit(lambda x, start: layer(x, start=start))
    for start in (0, 1, 2, 5):
        call(x, start=keras.ops.convert_to_tensor(start))
    assert len(traced) == 1
