"""Models trained through `PerTimestep`, against models with variables for each timestep."""

import keras
import numpy as np
import pytest
from cases import randomised
from conftest import BACKEND
from keras import ops
from test_optimizers import CLOSE, B, I, T, U, needs_muon, numpy, separate

from untied_rnn import PerTimestep, UntiedDense, UntiedSimpleRNN
from untied_rnn.sharing import Listed


class Loop(keras.Layer):
    """`UntiedSimpleRNN` with variables for each timestep."""

    def __init__(self, constraint):
        super().__init__()
        self.constraint = constraint

    def build(self, shape):
        weights = {"kernel": (shape[-1], U), "recurrent_kernel": (U, U), "bias": (U,)}
        constraints = {"kernel": self.constraint}
        # Numbered, for on torch Keras resets the gradient of one variable of each name only.
        self.sets = {
            name: [
                self.add_weight(one, name=f"{name}_{t}", constraint=constraints.get(name)) for t in range(T)
            ]
            for name, one in weights.items()
        }

    def call(self, x):
        states, h = [], ops.zeros((ops.shape(x)[0], U))
        for t in range(T):
            kernel, recurrent, bias = (self.sets[name][t] for name in self.sets)
            h = ops.tanh(ops.matmul(x[:, t], kernel) + ops.matmul(h, recurrent) + bias)
            states.append(h)
        return ops.stack(states, axis=1)

    def assign(self, layer):
        for name, sets in self.sets.items():
            for t, variable in enumerate(sets):
                variable.assign(layer.weights_at(t)[name])


def untied(constraint=None, **options):
    return UntiedSimpleRNN(U, return_sequences=True, kernel_constraint=constraint, **options)


def model_of(make):
    constraint = keras.constraints.MaxNorm(0.8)
    return keras.Sequential([keras.Input((T, I)), make(constraint), keras.layers.Dense(1, name="head")])


def fit(model, optimizer=None, seed=1, epochs=2, eager=False, **options):
    """Two batches in each epoch, with losses of very different size at the timesteps."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2 * B, T, I)), rng.normal(size=(2 * B, T, 1)) * [[[100.0], [1.0], [0.01]]]
    if optimizer is not None:
        # On TensorFlow XLA takes longer to compile than these few steps; JAX always compiles.
        model.compile(optimizer, "mse", jit_compile=BACKEND == "jax", run_eagerly=eager)
    model.fit(x, y, batch_size=B, epochs=epochs, shuffle=False, verbose=0, **options)


def schedule():
    return keras.optimizers.schedules.CosineDecay(0.05, 5)


def adamw():
    optimizer = keras.optimizers.AdamW(schedule(), weight_decay=0.3, clipnorm=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


FITTED = {
    "AdamW": adamw,
    "Lamb": lambda: keras.optimizers.Lamb(
        0.05, use_ema=True, ema_overwrite_frequency=1, gradient_accumulation_steps=2
    ),
    "Muon": lambda: keras.optimizers.Muon(0.05, exclude_layers=["head"]),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_muon if name == "Muon" else ()) for name in FITTED]
)
def test_fit_equals_a_model_of_separate_variables(name, rng):
    model, loop = model_of(untied), model_of(Loop)
    randomised(model, rng)
    (layer, head), (loops, loop_head) = model.layers, loop.layers
    loops.assign(layer)
    loop_head.set_weights(head.get_weights())
    before = model.get_weights()
    fit(model, PerTimestep(FITTED[name]()))
    fit(loop, FITTED[name](), eager=BACKEND == "tensorflow")  # which is faster
    assert all(np.abs(new - old).max() > 0.01 for new, old in zip(model.get_weights(), before, strict=True))
    for key, sets in loops.sets.items():
        for t in range(T):
            np.testing.assert_allclose(layer.weights_at(t)[key], numpy(sets)[t], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(head.get_weights(), loop_head.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_saved_model_resumes_exactly(tmp_path):
    """With the state of every timestep, a schedule's position and half of an accumulated gradient."""
    options = {"momentum": 0.9, "clipnorm": 0.1, "gradient_accumulation_steps": 3}
    model = model_of(untied)
    fit(model, PerTimestep(keras.optimizers.SGD(schedule(), **options), name="mine"))
    model.save(tmp_path / "model.keras")
    resumed = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(resumed.optimizer, PerTimestep)
    assert resumed.optimizer.name == "mine"
    assert resumed.optimizer.get_config() == model.optimizer.get_config()
    fit(model, seed=2)
    fit(resumed, seed=2)
    for ours, theirs in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_callback_sets_the_learning_rate():
    model, epochs = model_of(untied), []
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: [0.1, 0.0][epoch]),
        keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: epochs.append((logs["learning_rate"], model.get_weights()))
        ),
    ]
    before = model.get_weights()
    fit(model, PerTimestep(keras.optimizers.SGD(0.5)), callbacks=callbacks)
    (rate, first), (no_rate, second) = epochs
    assert (rate, no_rate) == pytest.approx((0.1, 0.0))
    for old, moved, still in zip(before, first, second, strict=True):
        assert np.abs(moved - old).max() > 0.01
        np.testing.assert_allclose(still, moved, atol=1e-6)  # constraints move the last digits


def test_mixed_precision_fit():
    policy = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    try:
        model = model_of(untied)
        before = model.get_weights()
        fit(model, PerTimestep(keras.optimizers.Adam(0.01, clipnorm=1.0)), epochs=20)
    finally:
        keras.mixed_precision.set_dtype_policy(policy)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert 0 < int(model.optimizer.iterations) <= 40
    for old, new in zip(before, model.get_weights(), strict=True):
        assert np.all(np.isfinite(new))
        assert np.any(new != old)


def test_averages_are_not_swapped_unseen():
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    optimizer = PerTimestep(keras.optimizers.SGD(0.1, use_ema=True))
    with pytest.raises(ValueError, match="SwapEMAWeights must be used when"):
        fit(model_of(untied), optimizer, callbacks=[swap])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sparse gradients and `tf.function` are TensorFlow's")
def test_training_loop_of_tensorflow(rng):
    """Builds the optimizer in the graph; the gradient of `kernel`, whose sets are gathered, is sparse."""
    import tensorflow as tf

    layer = UntiedDense(U, timesteps=T, sharing=Listed([1, 0, 1]), use_bias=False)
    layer.build((None, T, I))
    stack, sets = layer.kernel, separate(layer.kernel)
    ours, theirs = (
        PerTimestep(keras.optimizers.SGD(0.1, clipnorm=0.1)),
        keras.optimizers.SGD(0.1, clipnorm=0.1),
    )
    target = rng.normal(size=(3, I, U)).astype("float32")

    def gradient(variable, read):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((tf.gather(read(), [1, 0, 1]) - target) ** 2)
        return tape.gradient(loss, variable)

    @tf.function
    def step():
        sparse = gradient(stack.value, lambda: stack.value)
        assert isinstance(sparse, tf.IndexedSlices)
        ours.apply([sparse], [stack])

    for _ in range(3):
        step()
        theirs.apply(gradient([v.value for v in sets], lambda: tf.stack([v.value for v in sets])), sets)
    np.testing.assert_allclose(numpy([stack])[0], numpy(sets), **CLOSE)
