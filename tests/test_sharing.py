"""Which timesteps share weights, on every layer, and the moves from tied to untied."""

import json

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, I, O, U, random_mask, randomised
from cases import T as SHORT
from conftest import BACKEND, DTYPE, EXACT
from keras import ops
from reference_check import parameter_gradients, weights_along_time
from sharing_reference import Scaled

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic, Tied

T = 7  # 3 * 2 + 1
FAMILY = {
    "simple": lambda **k: UntiedSimpleRNN(U, output_units=O, return_sequences=True, dtype=DTYPE, **k),
    "lstm": lambda **k: UntiedLSTM(U, return_sequences=True, dtype=DTYPE, **k),
    "gru": lambda **k: UntiedGRU(U, return_sequences=True, dtype=DTYPE, **k),
    "any cell": lambda **k: UntiedRNN(
        keras.layers.LSTMCell(U, dtype=DTYPE), return_sequences=True, dtype=DTYPE, **k
    ),
    "dense": lambda **k: UntiedDense(U, activation="tanh", dtype=DTYPE, **k),
}
INDEX = [1, 0, 1, 2, 2, 0, 1]
SHARINGS = {
    "tied": Tied(),
    "blocks of 3": Blocks(3),
    "blocks of 100": Blocks(100),
    "period of 2": Periodic(2),
    "listed": Listed(INDEX),
    "low rank": LowRank(1),
    "low rank, blocks": LowRank(2, Blocks(3)),
    "full rank": LowRank(4, Periodic(2)),
    "rank 0": LowRank(0),
    "spline": Basis(3),
    "fourier": Basis(4, "fourier"),
    "own": Scaled(),
}
family = pytest.mark.parametrize("name", FAMILY)
# The LSTM and the GRU share their weights by the simple layer's code.
three = pytest.mark.parametrize("name", ["simple", "any cell", "dense"])


def built(name, rng, timesteps=T, **options):
    layer = FAMILY[name](**options)
    layer.build((None, timesteps, I))
    return randomised(layer, rng)


def outputs(layer, x):
    return to_numpy(layer(x))[0]


@pytest.mark.parametrize(
    ("name", "sharing", "unroll"),
    [
        *(("dense", sharing, False) for sharing in SHARINGS),
        *(("any cell", sharing, i % 2 == 0) for i, sharing in enumerate(SHARINGS)),
    ],
)
def test_equals_the_untied_layer_with_the_weights_of_each_timestep(name, sharing, unroll, rng):
    """Outputs, and gradients of all parameters. The other layers are in `test_numpy_loop.py`."""
    unroll = {} if name == "dense" else {"unroll": unroll}
    layer, untied = built(name, rng, sharing=SHARINGS[sharing], **unroll), built(name, rng, **unroll)
    along_time = weights_along_time(layer, T)
    untied.set_weights(list(along_time.values()))
    for t in (0, T - 1):
        for key, weight in layer.weights_at(t).items():
            np.testing.assert_allclose(weight, along_time[key][t], **EXACT)
    x = rng.normal(size=(B, T, I))
    kwargs = {} if name == "dense" else {"mask": rng.random((B, T)) < 0.7}
    cotangents = [rng.normal(size=layer.compute_output_shape((B, T, I)))]
    received, gradients = outputs_and_gradients(layer, x, cotangents, **kwargs)
    expected, slopes = outputs_and_gradients(untied, x, cotangents, **kwargs)
    np.testing.assert_allclose(received[0], expected[0], **EXACT)
    np.testing.assert_allclose(gradients["x"], slopes["x"], **EXACT)
    for key, wanted in parameter_gradients(layer, slopes).items():
        np.testing.assert_allclose(gradients[key], wanted, **EXACT, err_msg=key)


@three
def test_blocks_of_one_are_untied(name, rng):
    layer, untied = (built(name, rng, **options) for options in ({"sharing": Blocks(1)}, {}))
    untied.set_weights(layer.get_weights())
    x = rng.normal(size=(B, T, I))
    np.testing.assert_array_equal(outputs(layer, x), outputs(untied, x))


@pytest.mark.parametrize(
    ("cls", "make"),
    [
        (UntiedRNN, lambda: keras.layers.RNN(keras.layers.GRUCell(U, dtype=DTYPE), True, dtype=DTYPE)),
        (UntiedDense, lambda: keras.layers.Dense(U, activation="tanh", dtype=DTYPE)),
    ],
)
def test_one_block_is_the_tied_layer(cls, make, rng):
    """Of the other layers, `test_gated.py` and `test_from_tied.py` show it."""
    tied = make()
    tied.build((B, T, I))
    randomised(tied, rng)
    layer = cls.from_tied(tied, T, sharing=Blocks(T))
    assert layer.count_params() == tied.count_params()
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    received, gradients = outputs_and_gradients(layer, x, [cotangent])
    expected, slopes = outputs_and_gradients(tied, x, [cotangent])
    np.testing.assert_allclose(received[0], expected[0], **EXACT)
    for key, gradient in gradients.items():
        np.testing.assert_allclose(gradient if key == "x" else gradient[0], slopes[key], **EXACT, err_msg=key)


@three
def test_a_period_takes_any_length(name, rng):
    """Also a length not known, and one longer than ever seen."""
    layer = built(name, rng, sharing=Periodic(3), timesteps=None)
    inputs = keras.Input((None, I), dtype=DTYPE)
    model = keras.Model(inputs, layer(inputs))
    untied = built(name, rng, timesteps=10)
    untied.set_weights([weight[np.arange(10) % 3] for weight in layer.get_weights()])
    # Single precision numbers, since `predict` makes its data such.
    x = rng.normal(size=(B, 10, I)).astype("float32").astype(DTYPE)
    expected = outputs(untied, x)
    for length in (4, 10, 1):
        np.testing.assert_allclose(
            model.predict(x[:, :length], verbose=0), expected[:, :length], rtol=1e-5, atol=1e-6
        )
        np.testing.assert_allclose(outputs(layer, x[:, :length]), expected[:, :length], **EXACT)


@pytest.mark.parametrize(
    "options", [{"sharing": Periodic(3), "timesteps": 5}, {"sharing": Blocks(2), "timesteps": 5}]
)
@pytest.mark.parametrize("name", ["simple", "dense"])
def test_known_timesteps_are_a_limit(name, options, rng):
    layer = FAMILY[name](**options)
    layer.build((None, None, I))
    assert outputs(layer, rng.normal(size=(B, 5, I))).shape[1] == 5
    with pytest.raises(ValueError, match=r"weights for 5 timesteps.*sequence of 6"):
        layer(rng.normal(size=(B, 6, I)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple", {"sharing": Listed([0, 1, 1, 0, 2, 2])}),
        ("any cell", {"sharing": Blocks(2), "timesteps": 6}),
        ("dense", {"sharing": Listed([0, 1, 1, 0, 2, 2])}),
        ("dense", {"sharing": Blocks(2), "timesteps": 6}),
    ],
)
def test_a_shorter_sequence_uses_the_first_weights(name, options, rng):
    layer = FAMILY[name](**options)
    layer.build((None, None, I))
    randomised(layer, rng)
    inputs = keras.Input((None, I), dtype=DTYPE)
    model = keras.Model(inputs, layer(inputs))
    x = rng.normal(size=(B, 6, I)).astype("float32").astype(DTYPE)
    expected = outputs(layer, x)
    for length in (1, 3):
        for received in (outputs(layer, x[:, :length]), model.predict(x[:, :length], verbose=0)):
            np.testing.assert_allclose(received, expected[:, :length], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"sharing": Periodic(4)}, {"sharing": Blocks(3)}, {"frozen_timesteps": [0]}]
)
def test_only_the_last_output_uses_the_last_weights(options, rng):
    """With output matrices, also when no others are computed."""
    layer = built("simple", rng, **options)
    x = rng.normal(size=(B, T, I))
    expected = outputs(layer, x)[:, -1]
    layer.return_sequences = False
    np.testing.assert_allclose(outputs(layer, x), expected, **EXACT)


@pytest.mark.parametrize(
    ("name", "dial"), [("any cell", {"sharing": Blocks(3)}), ("dense", {"sharing": Periodic(2)})]
)
def test_fit_trains_every_set(name, dial, rng):
    layer = FAMILY[name](**dial)
    model = keras.Sequential([keras.Input((T, I), dtype=DTYPE), layer])
    before = layer.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = rng.normal(size=(8, T, I))
    model.fit(x, rng.normal(size=model.compute_output_shape(x.shape)), verbose=0)
    for old, new in zip(before, layer.get_weights(), strict=True):
        assert np.all(np.abs(new - old).reshape(len(old), -1).max(axis=1) > 0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA programs are inspected through TensorFlow")
@pytest.mark.parametrize("name", ["simple", "any cell"])
def test_gradients_of_shared_weights_take_no_copies(name):
    """In the program of a tied layer's gradient, nothing is as large as a weight for each timestep."""
    import tensorflow as tf

    timesteps, units = 40, 7

    def largest(sharing):
        if name == "any cell":
            layer = UntiedRNN(
                keras.layers.LSTMCell(units), timesteps=timesteps, sharing=sharing, unroll=False
            )
        else:
            layer = UntiedSimpleRNN(units, timesteps=timesteps, sharing=sharing, unroll=False)
        layer.build((1, timesteps, I))

        @tf.function(jit_compile=True)
        def function(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(x))
            return tape.gradient(loss, [w.value for w in layer.trainable_weights])

        text = function.experimental_get_compiler_ir(tf.zeros((1, timesteps, I)))(stage="optimized_hlo")
        return f"f32[{timesteps},{units}," in text

    assert largest("untied")
    assert not largest("tied")


# Configuration.


@pytest.mark.parametrize(
    ("name", "sharing"),
    list(zip(FAMILY, ["blocks of 3", "listed", "low rank, blocks", "fourier", "own"], strict=True)),
)
def test_configuration_and_files(name, sharing, rng, tmp_path):
    layer = built(name, rng, sharing=SHARINGS[sharing])
    config = json.loads(json.dumps(layer.get_config()))
    assert type(layer).from_config(config).sharing == SHARINGS[sharing]
    assert type(layer).from_config(config).get_config() == layer.get_config()
    model = keras.Sequential([keras.Input((T, I), dtype=DTYPE), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = rng.normal(size=(B, T, I))
    np.testing.assert_array_equal(to_numpy(loaded(x))[0], to_numpy(model(x))[0])


# Moves.


@three
def test_from_tied_to_untied_and_back(name, rng):
    layer = built(name, rng, sharing=Blocks(T))
    x = rng.normal(size=(B, T, I))
    steps = [layer]
    for move in ({"sharing": Blocks(4)}, {"sharing": Blocks(2)}, {"sharing": Listed([0, 1, 2, 2, 3, 3, 4])}):
        steps.append(steps[-1].refine(**move))
    steps.append(steps[-1].untie())
    assert [len(step.get_weights()[0]) for step in steps] == [1, 2, 4, 5, 7]
    assert len({step.name for step in steps}) == len(steps)
    for step in steps:
        np.testing.assert_allclose(outputs(step, x), outputs(layer, x), **EXACT)
    for weight, original in zip(steps[-1].averaged().get_weights(), layer.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, original)


@family
def test_untied_weights_are_averaged_over_the_timesteps_that_are_to_share(name, rng):
    layer = built(name, rng)
    before = [weight.copy() for weight in layer.get_weights()]
    tied, blocks = layer.averaged(), layer.averaged(sharing=Blocks(3))
    period = layer.averaged(sharing=Periodic(2))
    assert (tied.sharing, blocks.sharing, period.sharing) == (Tied(), Blocks(3), Periodic(2))
    for i, weight in enumerate(before):
        np.testing.assert_allclose(tied.get_weights()[i], weight.mean(axis=0)[None], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(blocks.get_weights()[i][0], weight[:3].mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(blocks.get_weights()[i][2], weight[6])
        np.testing.assert_allclose(
            period.get_weights()[i][1], weight[1::2].mean(axis=0), rtol=1e-5, atol=1e-6
        )
        np.testing.assert_array_equal(layer.get_weights()[i], weight)  # which is not changed itself


def test_averages_of_fewer_timesteps_and_of_frozen_ones(rng):
    layer = built("gru", rng, frozen_timesteps=[0, 3])
    weights = [layer.weights_at(t)["kernel"] for t in range(T)]
    tied, short = layer.averaged(), layer.averaged(timesteps=3)
    assert (tied.frozen_timesteps, short.timesteps, short.sharing) == (None, 3, Tied())
    np.testing.assert_allclose(tied.weights_at(0)["kernel"], np.mean(weights, axis=0), rtol=1e-5, atol=1e-6)
    mean = np.mean(weights[:3], axis=0)
    np.testing.assert_allclose(short.weights_at(0)["kernel"], mean, rtol=1e-5, atol=1e-6)


@three
def test_a_period_is_untied_for_as_many_timesteps_as_asked_for(name, rng):
    layer = built(name, rng, sharing=Periodic(3), timesteps=None)
    x = rng.normal(size=(B, 8, I))
    np.testing.assert_allclose(outputs(layer.untie(timesteps=8), x), outputs(layer, x), **EXACT)
    np.testing.assert_allclose(outputs(layer.refine(sharing=Periodic(6)), x), outputs(layer, x), **EXACT)
    assert layer.averaged().timesteps is None
    with pytest.raises(ValueError, match="must know how many"):
        layer.untie()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sharing": Blocks(4)},
            r"would change 'kernel' at the timesteps \[0, 1, 2, 3",
        ),
        ({"sharing": Periodic(2)}, "would change 'kernel'"),
        ({"timesteps": T + 1}, "at most 7 timesteps"),
        ({"sharing": Periodic(T + 1)}, "a timestep for each weight set"),
    ],
)
def test_moves_that_would_change_the_function_are_refused(change, message, rng):
    with pytest.raises(ValueError, match=message):
        built("gru", rng, sharing=Blocks(3)).refine(**change)


def test_moves_take_no_other_arguments(rng):
    layer = built("gru", rng, sharing=Blocks(3))
    for move in (layer.refine, layer.averaged):
        with pytest.raises(TypeError, match=r"The others stay as they are. Received: {'units': 4}"):
            move(units=4)
    tied = keras.layers.SimpleRNN(U)
    tied.build((B, T, I))
    with pytest.raises(TypeError, match=r"Received: {'output_units': 1}"):
        UntiedSimpleRNN.from_tied(tied, T, output_units=1)
    with pytest.raises(TypeError, match="`frozen_timesteps` must be a list of integers"):
        layer.freeze(3)


@family
def test_weights_of_a_timestep_are_there_once_the_layer_is_built(name):
    layer = FAMILY[name]()
    with pytest.raises(ValueError, match="call `build`, or the layer on data"):
        layer.weights_at(0)
    layer.build((B, T, I))
    with pytest.raises(TypeError, match=r"a timestep, an integer. Received: 1\.5"):
        layer.weights_at(1.5)


def test_moves_need_a_built_layer_and_keep_states(rng):
    with pytest.raises(ValueError, match="built layer"):
        UntiedGRU(U, timesteps=SHORT).untie()
    layer = UntiedGRU(U, timesteps=SHORT, sharing=Blocks(SHORT), stateful=True, dtype=DTYPE)
    first, second = rng.normal(size=(2, B, SHORT, I))
    layer(first)
    untied = layer.untie()
    np.testing.assert_allclose(outputs(untied, second), outputs(layer, second), **EXACT)


@family
def test_weights_of_one_timestep(name, rng):
    layer = built(name, rng, sharing=Listed(INDEX))
    for t, s in enumerate(INDEX):
        for (key, weight), stack in zip(layer.weights_at(t).items(), layer.weights, strict=True):
            assert key == stack.name
            np.testing.assert_array_equal(weight, ops.convert_to_numpy(stack)[s])
    for wrong in (-1, T):
        with pytest.raises(ValueError, match=f"7 timesteps.*Received: {wrong}"):
            layer.weights_at(wrong)


def test_masks_skip_the_weights_of_their_timesteps(rng):
    layer, mask = built("lstm", rng, timesteps=SHORT, sharing=Periodic(2)), random_mask(rng)
    x = rng.normal(size=(B, SHORT, I))
    poisoned = np.where(mask[..., None], x, 1e6)
    (received,), (expected,) = to_numpy(layer(poisoned, mask=mask)), to_numpy(layer(x, mask=mask))
    np.testing.assert_array_equal(received, expected)
