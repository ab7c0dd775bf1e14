"""Which layer a search takes, and how many timesteps share weights."""

import keras
import keras_tuner
import numpy as np
import pytest
import test_tuning
from conftest import BACKEND
from test_tuning import assert_same, random_search, searched, small, trained, values

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN, tuning

pytestmark = test_tuning.pytestmark
data = test_tuning.data
_quick_to_clear = test_tuning._quick_to_clear


def of_cells(units, dropout=0.0, **arguments):
    return UntiedRNN(keras.layers.GRUCell(units, dropout=dropout), **arguments)


def dense(units, return_sequences, **arguments):
    return UntiedDense(units, activation="relu", **arguments)


def of(layer, **ranges):
    """A hypermodel that searches `ranges` alone; a function gets nothing else."""
    names = ("dropout", "recurrent_dropout", "recurrent_initializer")
    return small(layer=layer, **((dict.fromkeys(names) if callable(layer) else {}) | ranges))


def made(hypermodel, **chosen):
    model = hypermodel.build(values(**chosen))
    return [layer for layer in model.layers if layer.name.startswith("untied_")]


@pytest.mark.parametrize(
    ("layer", "make", "num_layers", "arguments"),
    [
        ("UntiedLSTM", UntiedLSTM, 1, {"period": 2, "dropout": 0.3}),
        ("UntiedGRU", UntiedGRU, 1, {"reset_after": False}),
        (of_cells, of_cells, 1, {"block_size": 2, "dropout": 0.3}),
        (dense, dense, 2, {"period": 2}),
    ],
    ids=["LSTM", "GRU", "cells", "dense"],
)
def test_trains_like_the_model_written_by_hand(layer, make, num_layers, arguments, data, tmp_path):
    x, y = data
    model, _ = trained(of(layer, num_layers=num_layers, **arguments), values(), x, y, epochs=1)

    keras.utils.set_random_seed(0)
    sequences = states = keras.Input((3, 2))
    for i in range(num_layers):
        states = make(4, return_sequences=i < num_layers - 1, **arguments)(states)
    states = keras.layers.Flatten()(states) if make is dense else states
    by_hand = keras.Model(sequences, keras.layers.Dense(3)(states))
    by_hand.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = by_hand.get_weights()
    keras.utils.set_random_seed(0)
    by_hand.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    assert_same(model.get_weights(), by_hand.get_weights())
    assert not any(np.array_equal(a, b) for a, b in zip(before, by_hand.get_weights(), strict=True))

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_same(*([each.predict(x, verbose=0)] for each in (loaded, model)))


def test_trials_of_a_search_compute_what_each_computes_alone(data, tmp_path):
    hypermodel = small(layer=["UntiedSimpleRNN", "UntiedGRU"], block_size=[1, 3], dropout=0.3)
    tuner = random_search(hypermodel, tmp_path, max_trials=2, seed=2, objective="val_loss")
    trials = searched(tuner, *data, epochs=1, shuffle=False)
    assert {trial.hyperparameters["layer"] for trial in trials} == {"UntiedSimpleRNN", "UntiedGRU"}
    assert {trial.hyperparameters["block_size"] for trial in trials} == {1, 3}
    for trial in trials:
        alone = small(**trial.hyperparameters.values, dropout=0.3)
        _, history = trained(alone, values(), *data, epochs=1, validation_split=0.5)
        assert history.history["val_loss"] == [trial.score]


def test_ranges_of_sharing_reach_the_layers(tmp_path):
    hypermodel = small(
        units=range(4, 13, 4), layer=("UntiedLSTM", "UntiedGRU"), num_layers=2, block_size=range(1, 6, 2)
    )
    tuner = random_search(hypermodel, tmp_path / "block_size", max_trials=18)
    drawn = [tuner.oracle.create_trial(str(i)).hyperparameters for i in range(18)]
    assert list(drawn[0].values) == ["units", "layer", "block_size"]
    assert len({tuple(hp.values.values()) for hp in drawn}) == 18
    for hp in drawn[:2]:
        for layer in made(hypermodel, **hp.values):
            assert type(layer).__name__ == hp["layer"]
            assert (layer.units, layer.block_size, layer.period) == (hp["units"], hp["block_size"], None)

    hypermodel = small(layer="UntiedGRU", period={"min_value": 2, "max_value": 4})
    (layer,) = made(hypermodel, period=3)
    assert (layer.block_size, layer.period, layer.recurrent_kernel.shape[0]) == (None, 3, 3)


@pytest.mark.parametrize(
    ("layer", "searched"),
    [
        ("UntiedSimpleRNN", {"dropout", "recurrent_dropout", "recurrent_initializer"}),
        ("UntiedGRU", {"dropout", "recurrent_dropout"}),
        (["UntiedSimpleRNN", "UntiedLSTM"], {"layer", "dropout", "recurrent_dropout"}),
        (of_cells, set()),
    ],
    ids=["simple", "gated", "list", "function"],
)
def test_defaults_search_what_the_layers_have(layer, searched, tmp_path):
    hypermodel = tuning.UntiedRNNHyperModel(5, 2, 3, layer=layer)
    space = random_search(hypermodel, tmp_path).oracle.hyperparameters.values
    assert set(space) == searched | {"units", "num_layers", "optimizer", "learning_rate", "batch_size"}


def test_a_function_gets_what_is_given():
    received = []

    def layer(units, **arguments):
        received.append((units, arguments))
        return UntiedSimpleRNN(units, **arguments)

    given = {"recurrent_dropout": [0.1, 0.2], "block_size": 3, "use_bias": False}
    of(layer, num_layers=2, **given).build(values(recurrent_dropout=0.2))
    chosen = {"recurrent_dropout": 0.2, "block_size": 3, "use_bias": False}
    assert received[-2:] == [
        (4, {"return_sequences": True, "name": "untied_0", **chosen}),
        (4, {"return_sequences": False, "name": "untied_1", **chosen}),
    ]


def scaling(units, dropout, **arguments):
    def scaled(x):  # of which a configuration has the name alone
        return dropout * x

    return UntiedSimpleRNN(units, activation=scaled, **arguments)


def test_trials_that_a_configuration_does_not_tell_apart_have_programs_of_their_own(data):
    ranges = {"dropout": [0.25, 0.75]}
    hypermodel = of(scaling, **ranges)
    for dropout in ranges["dropout"]:
        model, history = trained(hypermodel, values(dropout=dropout), *data)
    alone, alone_history = trained(of(scaling, **ranges), values(dropout=dropout), *data)
    assert_same(model.get_weights(), alone.get_weights())
    assert history.history == alone_history.history


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")
def test_trials_of_a_function_compile_once(data):
    hypermodel = of(of_cells, learning_rate=[0.01, 0.1])
    for learning_rate in (0.01, 0.1):
        keras.utils.clear_session()  # as tuners do, for a cell's name is its number in the session
        trained(hypermodel, values(learning_rate=learning_rate), *data, epochs=1)
    assert len(hypermodel._programs) == 1


def ignores_return_sequences(units, return_sequences, **arguments):
    return UntiedSimpleRNN(units, **arguments)


@pytest.mark.parametrize(
    ("num_layers", "arguments", "message"),
    [
        (2, {"layer": ignores_return_sequences}, r"outputs all timesteps.*shape=\(None, 4\).*sequences=True"),
        (1, {"layer": lambda units, **_: keras.layers.Reshape((1, 1, 6))}, "Reshape.*shape=.None, 1, 1, 6"),
        (1, {"layer": "UntiedGRU", "return_state": True}, r"the last one, \(batch, features\)"),
    ],
    ids=["one timestep", "rank 4", "states"],
)
def test_outputs_that_neither_layers_nor_head_take_end_the_search(num_layers, arguments, message):
    hypermodel = of(num_layers=[1, 2], **arguments)
    with pytest.raises(keras_tuner.errors.FatalValueError, match=message):
        hypermodel.build(values(num_layers=num_layers))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "UntiedRNN"}, ValueError, "one of UntiedSimpleRNN, UntiedLSTM.*layer='UntiedRNN'"),
        ({"layer": ["UntiedGRU", "GRU"]}, ValueError, r"a list of these names.*'GRU'\]"),
        ({"layer": [UntiedGRU]}, ValueError, "a function"),
        ({"layer": []}, ValueError, r"layer=\[\]"),
        ({"layer": None}, ValueError, "layer=None"),
        ({"layer": lambda units, **_: units}, TypeError, "return a `keras.Layer`.*which returned 16"),
        ({"layer": lambda units: None}, TypeError, "return_sequences"),
        ({"layer": of_cells, "recurrent_dropout": [0.0, 0.1]}, ValueError, "recurrent_dropout"),
        ({"layer": ["UntiedLSTM", "UntiedGRU"], "unit_forget_bias": True}, ValueError, "to UntiedGRU"),
        ({"block_size": [1, 5], "period": 5}, ValueError, "at most one of block_size, period"),
        ({"period": range(1, 4), "weight_index": [0] * 5}, ValueError, "at most one of block_size, period"),
        (
            {"block_size": [None, 5]},
            TypeError,
            r"`block_size` of 1.*untied. Received: block_size=\[None, 5\]",
        ),
        ({"block_size": 0}, ValueError, "block_size=0"),
        ({"period": {"min_value": 0, "max_value": 2}}, ValueError, "period=0"),
        ({"name": "mine"}, TypeError, "name"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tuning.UntiedRNNHyperModel(5, 2, 3, **arguments)
