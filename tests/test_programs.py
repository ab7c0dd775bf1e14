"""Compiled programs that train several trials of a search."""

from types import SimpleNamespace

import keras
import pytest
import test_tuning
from conftest import BACKEND
from test_tuning import assert_same, small, trained, values

from untied_rnn import _programs

pytestmark = test_tuning.pytestmark
data = test_tuning.data
_quick_to_clear = test_tuning._quick_to_clear
TRACES = []


@keras.saving.register_keras_serializable("test_programs")
def traced_tanh(x):
    TRACES.append(x)
    return keras.ops.tanh(x)


def test_trials_of_one_program_compile_once_and_compute_the_same(data):
    options = {"learning_rate": [0.01, 0.1], "dropout": 0.3, "optimizer": "adam"}
    hypermodel, hp = small(activation=traced_tanh, **options), values(learning_rate=0.1)
    first, _ = trained(hypermodel, values(learning_rate=0.01), *data)
    after_first = _programs.values(first)

    second = hypermodel.build(hp)
    TRACES.clear()
    history = hypermodel.fit(hp, second, *data, epochs=2, shuffle=False, verbose=0)
    assert not TRACES or BACKEND == "torch"
    alone, alone_history = trained(small(activation=traced_tanh, **options), hp, *data)
    assert TRACES
    assert_same(_programs.values(second), _programs.values(alone))
    assert history.history == alone_history.history
    assert float(second.optimizer.learning_rate) == pytest.approx(0.1)
    assert int(second.optimizer.iterations) == 4
    assert_same(_programs.values(first), after_first)


def test_each_batch_size_has_a_program_of_its_own(data):
    hypermodel = small(activation=traced_tanh, batch_size=[8, 16])
    for batch_size in (8, 16):  # one program for both would be one for batches of any size, and slower
        hp = values(batch_size=batch_size)
        model = hypermodel.build(hp)
        TRACES.clear()
        hypermodel.fit(hp, model, *data, verbose=0)
        assert {x.shape[0] for x in TRACES} == {batch_size}


def test_another_program_is_not_taken_for_this_one(data):
    hypermodel = small()
    trained(hypermodel, values(), *data)

    def changed_and_trained(change, hypermodel):
        hypermodel._executions.clear()
        hp, optimizer = values(), keras.optimizers.SGD(0.01)
        model, loss = hypermodel.build(hp), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if change == "loss":
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=False)
        elif change == "clipnorm":
            optimizer = keras.optimizers.SGD(0.01, clipnorm=1e-3)
        else:
            model.layers[1].trainable = False
        model.compile(optimizer, loss, metrics=["accuracy"])
        hypermodel.fit(hp, model, *data, verbose=0)
        return model.get_weights()

    for change in ("loss", "clipnorm", "frozen"):
        after, alone = (changed_and_trained(change, each) for each in (hypermodel, small()))
        assert_same(after, alone)


def test_an_earlier_model_that_was_changed_trains_no_other(data):
    hypermodel = small(learning_rate=[0.01, 0.1])
    first, _ = trained(hypermodel, values(learning_rate=0.01), *data)
    first.layers[1].trainable = False
    first.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    second, _ = trained(hypermodel, values(learning_rate=0.1), *data)
    alone, _ = trained(small(learning_rate=[0.01, 0.1]), values(learning_rate=0.1), *data)
    assert_same(second.get_weights(), alone.get_weights())


@pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")
def test_few_programs_are_kept(data, monkeypatch):
    # Compiles nothing: what is kept is a question of sizes.
    monkeypatch.setattr(keras.Model, "fit", lambda *_, **__: SimpleNamespace(history={"loss": [1.0]}))
    monkeypatch.setattr(_programs, "KEPT_WEIGHTS", 250)
    hypermodel = small(units=[4, 5, 6])
    counts = [trained(hypermodel, values(units=units), *data)[0].count_params() for units in (4, 5, 6)]
    assert counts[1] + counts[2] > 250 >= counts[2]
    assert [program.count_params() for program in hypermodel._programs.models.values()] == counts[2:]
    monkeypatch.setattr(_programs, "KEPT_WEIGHTS", 1)
    trained(hypermodel, values(units=4), *data)  # the last one is kept whatever its size
    assert [program.count_params() for program in hypermodel._programs.models.values()] == counts[:1]
