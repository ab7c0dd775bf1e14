"""Timesteps whose weights are not trained: bit-equal whatever the optimizer does."""

import keras
import numpy as np
import pytest
from autodiff import names, outputs_and_gradients, to_numpy
from cases import B, I, T, U, randomised
from conftest import BACKEND, DTYPE, EXACT

from untied_rnn import UntiedDense, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Blocks, Periodic

FAMILY = {
    "simple": lambda **k: UntiedSimpleRNN(U, output_units=U, return_sequences=True, **k),
    "any cell": lambda **k: UntiedRNN(
        keras.layers.GRUCell(U, dtype=k.get("dtype")), return_sequences=True, **k
    ),
    "dense": lambda **k: UntiedDense(U, **k),
}
family = pytest.mark.parametrize("name", FAMILY)


def model_of(layer):
    return keras.Sequential([keras.Input((T, I)), layer])


def fit(model, optimizer, rng, epochs=3):
    # Compiling, by XLA or as a graph, would take longer than these few steps.
    model.compile(optimizer, "mse", jit_compile=False, run_eagerly=BACKEND == "tensorflow")
    model.fit(rng.normal(size=(8, T, I)), rng.normal(size=(8, T, U)), epochs=epochs, verbose=0)


def weights_by_timestep(layer):
    return [layer.weights_at(t) for t in range(T)]


def check_moved(before, after, frozen):
    for t in range(T):
        for key, old in before[t].items():
            if t in frozen:
                np.testing.assert_array_equal(after[t][key], old, err_msg=f"{key} of timestep {t}")
            elif old.ndim == 2 and not (t == 0 and key.startswith("recurrent")):  # of a state that is zero
                assert np.any(after[t][key] != old), f"{key} of timestep {t}"


OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.9, centered=True),
    "Adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "Adadelta": lambda: keras.optimizers.Adadelta(1.0),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.1),
    "Adamax": lambda: keras.optimizers.Adamax(0.01),
    "Adafactor": lambda: keras.optimizers.Adafactor(0.01),
    "Nadam": lambda: keras.optimizers.Nadam(0.01),
    "Ftrl": lambda: keras.optimizers.Ftrl(0.1),
    "Lion": lambda: keras.optimizers.Lion(0.01),
    "Lamb": lambda: keras.optimizers.Lamb(0.01),
    "LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    "averages": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_overwrite_frequency=1),
    "clipping": lambda: keras.optimizers.Adam(0.01, global_clipnorm=0.1, gradient_accumulation_steps=2),
}
# The first has errors of its own in earlier versions of Keras, the second is not there.
NEWER = {
    "Muon": lambda: keras.optimizers.Muon(0.01),
    "ScheduleFreeAdamW": lambda: keras.optimizers.ScheduleFreeAdamW(0.01),
}
if hasattr(keras.optimizers, "ScheduleFreeAdamW"):
    OPTIMIZERS |= NEWER


def test_all_optimizers_of_keras_are_here():
    classes = (
        value
        for value in vars(keras.optimizers).values()
        if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
    )
    # The second hands variables on to the others.
    others = {"Optimizer", "MultiOptimizer"}
    assert {cls.__name__ for cls in classes} - others <= {*OPTIMIZERS, *NEWER}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_timesteps_stay_bit_equal(optimizer, rng):
    """In several steps, for moments and weight decay move weights without gradients."""
    layer = FAMILY["dense"](frozen_timesteps=[0, 2])
    model = model_of(layer)
    before = weights_by_timestep(layer)
    fit(model, OPTIMIZERS[optimizer](), rng)
    check_moved(before, weights_by_timestep(layer), {0, 2})


@family
def test_stage_by_stage(name, rng):
    """One timestep after the other, and at last all of them."""
    layer = FAMILY[name](frozen_timesteps=[1, 2, 3])
    model_of(layer)
    for frozen in ({1, 2, 3}, {0, 2, 3}, set()):
        layer, previous = layer.freeze(sorted(frozen)), layer
        before = weights_by_timestep(layer)
        for ours, theirs in zip(before, weights_by_timestep(previous), strict=True):
            for key in ours:
                np.testing.assert_array_equal(ours[key], theirs[key])
        fit(model_of(layer), keras.optimizers.Adam(0.01), rng, epochs=1)
        check_moved(before, weights_by_timestep(layer), frozen)


@pytest.mark.parametrize("name", ["any cell", "dense"])
def test_outputs_and_the_other_gradients_are_the_same(name, rng):
    """Of the other layers, `test_numpy_loop.py` shows it."""
    layer = FAMILY[name](dtype=DTYPE)
    layer.build((None, T, I))
    randomised(layer, rng)
    frozen = layer.freeze([3, 1])
    x, cotangent = rng.normal(size=(B, T, I)), rng.normal(size=(B, T, U))
    expected, slopes = outputs_and_gradients(layer, x, [cotangent])
    outputs, gradients = outputs_and_gradients(frozen, x, [cotangent])
    np.testing.assert_allclose(outputs[0], expected[0], **EXACT)
    np.testing.assert_allclose(gradients["x"], slopes["x"], **EXACT)
    assert set(names(frozen)) == set(names(layer))
    for key in names(layer):
        np.testing.assert_allclose(gradients[key], slopes[key][[0, 2]], **EXACT, err_msg=key)


@family
def test_counts_and_names(name):
    layer, free = FAMILY[name](frozen_timesteps=[1, 2, 3]), FAMILY[name]()
    for one in (layer, free):
        one.build((None, T, I))
    trained, frozen = (
        sum(int(np.prod(w.shape)) for w in weights)
        for weights in (layer.trainable_weights, layer.non_trainable_weights)
    )
    assert trained * T == free.count_params()
    assert frozen == 3 * trained
    assert [w.name for w in layer.non_trainable_weights] == [f"frozen_{w.name}" for w in free.weights]


@family
def test_files_are_the_same_whatever_is_frozen(name, rng, tmp_path):
    free = FAMILY[name]()
    model = model_of(free)
    frozen = model_of(FAMILY[name](frozen_timesteps=[0, 3]))
    model.save_weights(tmp_path / "free.weights.h5")
    frozen.load_weights(tmp_path / "free.weights.h5")
    x = rng.normal(size=(B, T, I)).astype("float32")
    np.testing.assert_allclose(to_numpy(frozen(x))[0], to_numpy(model(x))[0], rtol=1e-6, atol=1e-6)
    frozen.save_weights(tmp_path / "frozen.weights.h5")
    model.load_weights(tmp_path / "frozen.weights.h5")
    np.testing.assert_allclose(to_numpy(frozen(x))[0], to_numpy(model(x))[0], rtol=1e-6, atol=1e-6)
    frozen.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].frozen_timesteps == [0, 3]
    np.testing.assert_array_equal(to_numpy(loaded(x))[0], to_numpy(frozen(x))[0])
    other = model_of(UntiedDense(U + 1, frozen_timesteps=[0]))
    with pytest.raises(ValueError, match="expected weights of shapes"):
        other.load_weights(tmp_path / "free.weights.h5")


def test_seeded_weights_do_not_depend_on_what_is_frozen():
    seed = keras.initializers.GlorotUniform(seed=3)
    layers = [UntiedDense(U, kernel_initializer=seed, frozen_timesteps=f) for f in (None, [2], [0, 1])]
    for layer in layers:
        layer.build((None, T, I))
        for ours, theirs in zip(weights_by_timestep(layer), weights_by_timestep(layers[0]), strict=True):
            np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])


def test_penalties_count_frozen_weights(rng):
    layer = UntiedDense(U, kernel_regularizer=keras.regularizers.L2(0.5))
    layer.build((None, T, I))
    losses = [float(np.asarray(keras.ops.convert_to_numpy(x.losses[0]))) for x in (layer, layer.freeze([1]))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("name", ["any cell", "dense"])
def test_with_shared_weights(name, rng):
    layer = FAMILY[name](sharing=Blocks(2), frozen_timesteps=[0, 1])
    model = model_of(layer)
    before = weights_by_timestep(layer)
    fit(model, keras.optimizers.Adam(0.01), rng)
    check_moved(before, weights_by_timestep(layer), {0, 1})
    x = rng.normal(size=(B, T, I)).astype("float32")
    untied = layer.untie()  # frozen as before
    np.testing.assert_allclose(to_numpy(untied(x))[0], to_numpy(layer(x))[0], rtol=1e-5, atol=1e-6)
    before = weights_by_timestep(untied)
    fit(model_of(untied), keras.optimizers.Adam(0.01), rng)
    check_moved(before, weights_by_timestep(untied), {0, 1})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"frozen_timesteps": [0, T]}, ValueError, "from 0 to 3"),
        ({"frozen_timesteps": [T + 1]}, ValueError, "from 0 to 3"),
        ({"frozen_timesteps": range(T)}, ValueError, "`trainable=False` freezes a layer"),
        ({"frozen_timesteps": [-1]}, ValueError, "integers from 0"),
        ({"frozen_timesteps": [1.5]}, TypeError, "list of integers"),
        ({"frozen_timesteps": 2}, TypeError, "list of integers"),
        ({"frozen_timesteps": [0, 1, 2], "sharing": Blocks(2)}, ValueError, r"frozen together.*\[2\] share"),
        ({"frozen_timesteps": [2], "sharing": Periodic(2)}, ValueError, "from 0 to 1"),
    ],
)
def test_wrong_arguments(options, error, message):
    with pytest.raises(error, match=message):
        UntiedDense(U, **options).build((None, T, I))
