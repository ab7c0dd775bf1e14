"""The hypermodel, with keras-tuner's own tuners."""

import functools
import gc
import inspect
import re
from typing import ClassVar

import keras
import keras_tuner
import numpy as np
import pytest
from conftest import BACKEND

from untied_rnn import UntiedSimpleRNN, tuning
from untied_rnn.sharing import Blocks

# keras-tuner saves the optimizer with the weights, and loads the weights alone.
pytestmark = pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer:UserWarning")


@pytest.fixture(scope="module", autouse=True)
def _quick_to_clear():
    """Tuners clear Keras's session for each model, and with it look through all objects that there are."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def small(num_classes=3, **ranges):
    """A hypermodel of which nothing is searched but what is given."""
    fixed = {
        "units": 4,
        "num_layers": 1,
        "dropout": 0.0,
        "recurrent_dropout": 0.0,
        "recurrent_initializer": "orthogonal",
        "optimizer": "sgd",  # few operations to compile
        "learning_rate": 0.01,
        "batch_size": 16,
        "seed": 0,
    }
    return tuning.UntiedRNNHyperModel(3, 2, num_classes, **(fixed | ranges))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(32, 3, 2)).astype("float32"), rng.integers(3, size=32)


def values(**values):
    hp = keras_tuner.HyperParameters()
    hp.values = values
    return hp


def trained(hypermodel, hp, x, y, **options):
    # In a fixed order: JAX shuffles by a generator that only `clear_session` puts back, as tuners do.
    model = hypermodel.build(hp)
    history = hypermodel.fit(hp, model, x, y, **({"epochs": 2, "shuffle": False, "verbose": 0} | options))
    return model, history


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def random_search(hypermodel, folder, **options):
    options = {"max_trials": 4, "seed": 1, "directory": folder} | options
    return keras_tuner.RandomSearch(hypermodel, options.pop("objective", "val_accuracy"), **options)


def searched(tuner, x, y, **options):
    options = {"epochs": 2, "validation_split": 0.5, "verbose": 0} | options
    tuner.search(x, y, **options)
    return sorted(tuner.oracle.trials.values(), key=lambda trial: trial.trial_id)


def test_ranges_are_honoured(tmp_path):
    hypermodel = tuning.UntiedRNNHyperModel(
        5,
        2,
        num_classes=3,
        units=range(4, 13, 4),
        num_layers=[1, 3],
        dropout={"min_value": 0.1, "max_value": 0.5},
        recurrent_dropout=(0.3, 0.6),
        recurrent_initializer=("orthogonal", "identity"),
        optimizer="sgd",
        learning_rate={"min_value": 1e-4, "max_value": 1e-1, "sampling": "log"},
        batch_size={"min_value": 8, "max_value": 16, "step": 8},
    )
    tuner = random_search(hypermodel, tmp_path, max_trials=60)
    drawn = [tuner.oracle.create_trial(str(i)).hyperparameters for i in range(60)]
    assert {hp["units"] for hp in drawn} == {4, 8, 12}
    assert {hp["num_layers"] for hp in drawn} == {1, 3}
    assert {hp["recurrent_initializer"] for hp in drawn} == {"orthogonal", "identity"}
    assert {hp["batch_size"] for hp in drawn} == {8, 16}
    assert all(0.1 <= hp["dropout"] <= 0.5 for hp in drawn)
    rates = np.array([hp["learning_rate"] for hp in drawn])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-1
    assert (rates < 1e-2).mean() > 0.5  # two decades of three
    assert all("optimizer" not in hp.values for hp in drawn)
    for hp in drawn[:5]:
        model = hypermodel.build(hp)
        layers = [layer for layer in model.layers if isinstance(layer, UntiedSimpleRNN)]
        assert [layer.units for layer in layers] == [hp["units"]] * hp["num_layers"]
        assert {layer.dropout for layer in layers} == {hp["dropout"]}
        assert {layer.recurrent_dropout for layer in layers} == {hp["recurrent_dropout"]}
        initializer = keras.initializers.get(hp["recurrent_initializer"])
        assert {type(layer.recurrent_initializer) for layer in layers} == {type(initializer)}
        assert isinstance(model.optimizer, keras.optimizers.SGD)
        assert float(model.optimizer.learning_rate) == pytest.approx(hp["learning_rate"])


def test_defaults_search_all(tmp_path):
    space = random_search(tuning.UntiedRNNHyperModel(5, 2, 3), tmp_path).oracle.hyperparameters.values
    assert set(space) == {
        *("units", "num_layers", "dropout", "recurrent_dropout", "recurrent_initializer"),
        *("optimizer", "learning_rate", "batch_size"),
    }


@pytest.mark.parametrize(
    ("heads", "loss", "metric"),
    [
        ({"num_classes": 3}, keras.losses.SparseCategoricalCrossentropy(from_logits=True), "accuracy"),
        ({"num_classes": None, "output_dim": 2}, keras.losses.MeanSquaredError(), "mean_absolute_error"),
    ],
)
def test_heads(heads, loss, metric, data, rng):
    x, y = data
    if "output_dim" in heads:
        y = rng.normal(size=(32, 2))
    model = small(**heads).build(values())
    expected = float(keras.ops.convert_to_numpy(loss(y, model(x))))
    results = model.evaluate(x, y, verbose=0, return_dict=True)
    assert results["loss"] == pytest.approx(expected, rel=1e-5)
    assert metric in results


def test_trains_like_the_model_written_by_hand(data):
    x, y = data
    arguments = {"activation": "relu", "recurrent_dropout": 0.2, "sharing": Blocks(2)}
    adam = keras.optimizers.Adam(0.5, clipnorm=0.1)
    hypermodel = small(num_layers=2, dropout=0.3, seed=7, optimizer=adam, **arguments)
    model, _ = trained(hypermodel, values(), x, y)

    keras.utils.set_random_seed(7)
    by_hand = keras.Sequential(
        [
            keras.Input((3, 2)),
            UntiedSimpleRNN(4, dropout=0.3, return_sequences=True, **arguments),
            UntiedSimpleRNN(4, dropout=0.3, **arguments),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    by_hand.compile(keras.optimizers.Adam(0.01, clipnorm=0.1), loss)
    keras.utils.set_random_seed(7)
    by_hand.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_same(model.get_weights(), by_hand.get_weights())


class Steps(keras.callbacks.Callback):
    """Notes how many steps an epoch has, also as one of the copies that a tuner makes of it."""

    seen: ClassVar = []

    def on_train_begin(self, logs=None):
        self.seen.append(self.params["steps"])


@pytest.fixture(scope="module")
def search(data, tmp_path_factory):
    """Four trials by two programs, as a function of the tuner's seed."""

    def run(seed):
        hypermodel = small(learning_rate=[1e-2, 1e-1], batch_size=[8, 16], dropout=0.5, seed=3)
        folder = tmp_path_factory.mktemp("search")
        tuner = random_search(hypermodel, folder, objective="val_loss", seed=seed)
        Steps.seen.clear()
        return tuner, searched(tuner, *data, callbacks=[Steps()]), list(Steps.seen)

    return functools.cache(run)


def test_best_models_have_their_own_weights(search, data):
    x, y = data
    tuner, _, _ = search(1)
    for model, trial in zip(tuner.get_best_models(2), tuner.oracle.get_best_trials(2), strict=True):
        loss = model.evaluate(x[16:], y[16:], verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(trial.score)
        assert float(model.optimizer.learning_rate) == pytest.approx(trial.hyperparameters["learning_rate"])


def test_search_arguments_reach_fit(search):
    _, trials, steps = search(1)
    assert steps == [16 // trial.hyperparameters["batch_size"] for trial in trials]


def test_a_seed_makes_trials_reproducible_in_any_order(search):
    first, other = (
        {str(trial.hyperparameters.values): trial.score for trial in search(seed)[1]} for seed in (1, 2)
    )
    assert len(set(first.values())) == 4
    assert list(other) != list(first)
    assert other == first


def test_executions_of_a_trial_differ(data, tmp_path):
    tuner = random_search(small(), tmp_path, max_trials=1, executions_per_trial=2, objective="val_loss")
    (trial,) = searched(tuner, *data, epochs=1, shuffle=False)
    losses = []
    for seed in (0, 1):
        _, history = trained(small(seed=seed), values(), *data, epochs=1, validation_split=0.5)
        losses.append(min(history.history["val_loss"]))
    assert losses[0] != losses[1]
    assert trial.score == pytest.approx(np.mean(losses), rel=1e-6)


def test_hyperband_goes_on_with_the_weights_of_a_trial(data, tmp_path):
    rates = {"min_value": 1e-3, "max_value": 1e-2}
    hypermodel = small(learning_rate=rates)
    tuner = keras_tuner.Hyperband(hypermodel, "val_loss", max_epochs=3, seed=1, directory=tmp_path)
    tuner.oracle.max_trials = 4  # three, and the best of them continued
    trials = searched(tuner, *data, shuffle=False)
    assert {trial.status for trial in trials} == {"COMPLETED"}
    (trial,) = [trial for trial in trials if "tuner/trial_id" in trial.hyperparameters.values]
    hp, again = trial.hyperparameters, small(learning_rate=rates)
    model = again.build(hp)
    model.load_weights(f"{tuner.get_trial_dir(hp['tuner/trial_id'])}/checkpoint.weights.h5")
    options = {"initial_epoch": hp["tuner/initial_epoch"], "epochs": hp["tuner/epochs"]}
    history = again.fit(hp, model, *data, validation_split=0.5, verbose=0, shuffle=False, **options)
    assert min(history.history["val_loss"]) == trial.score
    assert len(hypermodel._programs.models) == (BACKEND != "torch")


def test_diverging_trials_have_failed_and_the_search_goes_on(data, tmp_path):
    x, y = data
    hypermodel = small(learning_rate=[1e-5, 1e38], activation=None)
    failed, other = searched(random_search(hypermodel, tmp_path, max_trials=2, seed=2), x * 1e3, y, epochs=3)
    assert failed.hyperparameters["learning_rate"] == 1e38
    assert (failed.status, other.status) == ("FAILED", "COMPLETED")
    losses = re.search(r"The loss diverged: \[(.*)\]", failed.message)[1].split(", ")
    assert np.all(np.isfinite([float(loss) for loss in losses[:-1]]))  # it ended there


@pytest.mark.skipif(BACKEND != "tensorflow", reason="JAX and torch ask the system for it, which may kill")
def test_trials_out_of_memory_have_failed_and_the_search_goes_on(data, tmp_path):
    tuner = random_search(small(units=[4, 1_000_000]), tmp_path, max_trials=2, seed=2)
    failed, other = searched(tuner, *data, epochs=1)
    assert failed.hyperparameters["units"] == 1_000_000
    assert (failed.status, other.status) == ("FAILED", "COMPLETED")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data")
def test_a_dataset_brings_its_batch_size(data):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices(data).batch(8)
    hypermodel, hp = small(batch_size=None), values()
    model = hypermodel.build(hp)
    hypermodel.fit(hp, model, batches, verbose=0)
    assert int(model.optimizer.iterations) == 4


def test_batch_size_beside_the_searched_one_is_refused(data, tmp_path):
    tuner = random_search(small(), tmp_path)
    with pytest.raises(ValueError, match=r"batch size as an argument.*Received: batch_size=4"):
        searched(tuner, *data, batch_size=4)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_classes": None}, ValueError, "one of `num_classes` and `output_dim`"),
        ({"output_dim": 3}, ValueError, "one of `num_classes` and `output_dim`"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"num_classes": 2.5}, TypeError, "num_classes"),
        ({"units": 0}, ValueError, "units=0"),
        ({"units": "16"}, TypeError, "units='16'"),
        ({"units": range(0, 9)}, ValueError, "units=0"),
        ({"units": range(9, 4)}, ValueError, "at least one value of `units`"),
        ({"units": []}, ValueError, "at least one value of `units`"),
        ({"units": {"min_value": 4}}, TypeError, "units=None"),
        ({"units": {"min_value": 4, "max_value": 8, "steps": 2}}, TypeError, "steps"),
        ({"num_layers": [1, 0]}, ValueError, "num_layers=0"),
        ({"dropout": (0.1, 1.5)}, ValueError, "dropout=1.5"),
        ({"recurrent_initializer": ["orthogonal", "diagonal"]}, ValueError, "diagonal"),
        ({"optimizer": "adamant"}, ValueError, "adamant"),
        ({"learning_rate": 0}, ValueError, "learning_rate=0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate=nan"),
        ({"batch_size": [32, -1]}, ValueError, "batch_size=-1"),
        ({"seed": 0.5}, TypeError, "seed"),
        ({"activations": "relu"}, (TypeError, ValueError), "activations"),
        ({"timesteps": None}, TypeError, "timesteps"),
        ({"input_dim": -1}, ValueError, "input_dim"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tuning.UntiedRNNHyperModel(**({"timesteps": 5, "input_dim": 2, "num_classes": 3} | arguments))


def test_docstring_names_all_arguments():
    text = inspect.getdoc(tuning.UntiedRNNHyperModel)
    parameters = inspect.signature(tuning.UntiedRNNHyperModel).parameters
    names = re.findall(r"^    (\**\w+): ", text.split("Args:\n")[1].split("\n\n")[0], flags=re.MULTILINE)
    assert [name.strip("*") for name in names] == list(parameters)


@pytest.mark.release
def test_docstring_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(
        r"```python\n(.*?)```", inspect.getdoc(tuning.UntiedRNNHyperModel), flags=re.DOTALL
    )
    exec(example, {})
