"""Which layer and which sharing a search takes."""

import dataclasses

import keras
import keras_tuner
import numpy as np
import pytest
import test_tuning
from conftest import BACKEND
from test_tuning import assert_same, random_search, searched, small, trained, values

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN, tuning
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic, Sharing, Tied, Untied

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
        ("UntiedLSTM", UntiedLSTM, 1, {"sharing": Periodic(2), "dropout": 0.3}),
        ("UntiedGRU", UntiedGRU, 1, {"reset_after": False}),
        (of_cells, of_cells, 1, {"sharing": Blocks(2), "dropout": 0.3}),
        (dense, dense, 2, {"sharing": Periodic(2)}),
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
    hypermodel = small(layer=["UntiedSimpleRNN", "UntiedGRU"], sharing=["untied", "tied"], dropout=0.3)
    tuner = random_search(hypermodel, tmp_path, max_trials=2, seed=2, objective="val_loss")
    trials = searched(tuner, *data, epochs=1, shuffle=False)
    assert {trial.hyperparameters["layer"] for trial in trials} == {"UntiedSimpleRNN", "UntiedGRU"}
    assert {trial.hyperparameters["sharing"] for trial in trials} == {"Untied()", "Tied()"}
    for trial in trials:
        chosen = trial.hyperparameters.values
        alone = small(**chosen | {"sharing": hypermodel.sharings[chosen["sharing"]]}, dropout=0.3)
        _, history = trained(alone, values(), *data, epochs=1, validation_split=0.5)
        assert history.history["val_loss"] == [trial.score]


def test_a_search_of_sharings_is_read_again_and_goes_on(data, tmp_path):
    sharings = [Untied(), LowRank(1), Blocks(2)]

    def tuner(max_trials):
        options = {"max_trials": max_trials, "objective": "val_loss", "overwrite": False}
        return random_search(small(sharing=sharings), tmp_path, **options)

    searched(tuner(2), *data, epochs=1)
    again = tuner(3)
    first_two = dict(again.oracle.trials)
    trials = searched(again, *data, epochs=1)
    assert len(first_two) == 2
    assert {trial.trial_id for trial in trials} > set(first_two)
    assert {trial.hyperparameters["sharing"] for trial in trials} == {
        *("Untied()", "LowRank(rank=1, sharing=Untied())", "Blocks(size=2)")
    }
    x, y = data
    best = again.oracle.get_best_trials(3)
    for trial, model in zip(best, tuner(3).get_best_models(3), strict=True):
        chosen = again.hypermodel.sharings[trial.hyperparameters["sharing"]]
        assert model.layers[1].sharing == chosen
        assert chosen in sharings
        loss = model.evaluate(x[16:], y[16:], verbose=0, return_dict=True)["loss"]
        assert loss == pytest.approx(trial.score)


def test_a_search_does_not_go_on_with_other_sharings(data, tmp_path):
    searched(random_search(small(sharing=[Blocks(2)]), tmp_path, max_trials=1), *data, epochs=1)
    other = random_search(small(sharing=[Untied(), LowRank(1)]), tmp_path, max_trials=1)
    with pytest.raises(
        ValueError, match=r"begun with. Received: Blocks\(size=2\), .* of Untied\(\), LowRank"
    ):
        other.get_best_models()


def test_ranges_of_sharing_reach_the_layers(tmp_path):
    hypermodel = small(
        units=range(4, 13, 4),
        layer=("UntiedLSTM", "UntiedGRU"),
        num_layers=2,
        sharing=(Untied(), Blocks(3), LowRank(1)),
    )
    tuner = random_search(hypermodel, tmp_path, max_trials=18)
    drawn = [tuner.oracle.create_trial(str(i)).hyperparameters for i in range(18)]
    assert list(drawn[0].values) == ["units", "layer", "sharing"]
    assert len({tuple(hp.values.values()) for hp in drawn}) == 18
    for hp in drawn[:2]:
        for layer in made(hypermodel, **hp.values):
            assert type(layer).__name__ == hp["layer"]
            assert (layer.units, repr(layer.sharing)) == (hp["units"], hp["sharing"])


@keras.saving.register_keras_serializable("test_tuning_layers")
def ramp(timesteps, size):
    return np.linspace(1, 2, timesteps)[:, None] ** np.arange(size)


@keras.saving.register_keras_serializable("test_tuning_layers")
@dataclasses.dataclass(frozen=True)
class Mine(Sharing):
    of: Sharing


def test_each_sharing_has_a_text_that_is_the_same_in_every_process():
    long = [[0, 1] * 20, [0, 1] * 19 + [1, 0]]  # of which `repr` shows the same
    sharings = {
        "Tied()": "tied",
        "Periodic(period=2)": Periodic(2),
        f"Listed(index={tuple(long[0])})": Listed(long[0]),
        f"Listed(index={tuple(long[1])})": Listed(long[1]),
        "LowRank(rank=1, sharing=Blocks(size=2))": LowRank(1, Blocks(2)),
        "Basis(size=2, kind='spline')": Basis(2),
        "Basis(size=2, kind=ramp)": Basis(2, ramp),
        "Mine(of=Tied())": Mine(Tied()),
    }
    hypermodel = of("UntiedGRU", sharing=list(sharings.values()))
    assert hypermodel.sharings == {**sharings, "Tied()": Tied()}
    assert hypermodel.ranges["sharing"] == list(sharings)


def test_cells_take_sharings_by_the_names_of_weights():
    by_name = {"recurrent_kernel": Blocks(2)}
    (fixed,), (chosen,) = (
        made(of(of_cells, sharing=sharing), sharing="{'recurrent_kernel': 'Blocks(size=2)'}")
        for sharing in (by_name, ["untied", by_name])
    )
    assert fixed.sharing == chosen.sharing == by_name


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

    given = {"recurrent_dropout": [0.1, 0.2], "sharing": Blocks(3), "use_bias": False}
    of(layer, num_layers=2, **given).build(values(recurrent_dropout=0.2))
    chosen = {"recurrent_dropout": 0.2, "sharing": Blocks(3), "use_bias": False}
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
    assert len(hypermodel._programs.models) == 1


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
        ({"sharing": [None, Blocks(5)]}, TypeError, r"`Untied\(\)` for untied .*sharing=\[None, Blocks"),
        ({"sharing": []}, ValueError, "at least one value of `sharing`"),
        ({"sharing": [Untied(), 7]}, TypeError, "Expected a sharing.*Received: 7"),
        ({"sharing": ["tied", "tie"]}, TypeError, "Expected a sharing.*Received: 'tie'"),
        ({"sharing": [Tied(), "tied"]}, ValueError, r"sharings that differ.*there are Tied\(\)"),
        ({"sharing": range(1, 3)}, TypeError, "Expected a sharing.*range"),
        ({"sharing": [Untied(), {"kernel": Tied()}]}, TypeError, "Expected one sharing.*kernel"),
        ({"name": "mine"}, TypeError, "name"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        tuning.UntiedRNNHyperModel(5, 2, 3, **arguments)
