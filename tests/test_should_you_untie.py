"""The comparison of tied and untied layers: its parts, and the script as a user runs it."""

import sys

import keras
import numpy as np
import pytest
import test_examples
from conftest import BACKEND

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[examples]`")
pd = pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)

import should_you_untie as example  # noqa: E402 (what it needs is looked for first)

digits = test_examples.digits


@pytest.mark.parametrize("block_size", [28, 14, 7, 4, 2, 1])
def test_units_are_those_of_equal_parameter_count(block_size):
    untied = example.network(1, 50, 0.0, False, 1).count_params()
    units = example.units_for(block_size, untied)
    model = example.network(block_size, units, 0.0, False, 1)
    assert example.parameters(block_size, units) == model.count_params()
    off = [abs(example.parameters(block_size, units + i) - untied) for i in (-1, 0, 1)]
    assert min(off) == off[1] < 0.011 * untied  # one unit more or less is 2 % of blocks of 2


def test_plan_has_each_run_once():
    runs = example.plan(example.BLOCK_SIZES, example.FEW, 60_000, 10, 3)
    assert (
        len(set(runs)) == len(runs) == 6 + 5 + 3 * 3 + 4 + 3
    )  # untied is in both comparisons of block sizes
    assert {run.seed for run in runs} == {3}
    assert [run.task for run in runs if run.smoothness] == ["cut"]


def test_made_task_is_linear_with_matrices_that_differ():
    x, y, x_test, y_test = example.made(4000, 300)
    assert (x.shape, x_test.shape, y.dtype) == ((4000, 28, 28), (300, 28, 28), np.int32)
    assert x.std() == pytest.approx(0.1, rel=0.01)
    assert len(np.unique(y)) == 10
    matrices = np.random.default_rng(0).standard_normal((28, 28, 10))
    sums = sum(x_test[:, t] @ matrices[t] for t in range(28))
    np.testing.assert_array_equal(sums.argmax(axis=1), y_test)


def test_cut_digits_end_after_their_length():
    x = np.zeros((2, 28, 28), "float32")
    rows = (example.cut(x, np.array([5, 28])) == 0).all(axis=2)
    assert rows.sum(axis=1).tolist() == [5, 28]
    assert rows[0, :5].all()
    np.testing.assert_array_equal(example.cut(x, 8), example.cut(x, np.array([8, 8])))


def test_most_cut_digits_are_short():
    lengths = example.mostly_short(100_000, np.random.default_rng(0))
    assert (lengths.min(), lengths.max()) == (4, 28)
    assert np.mean(lengths == 4) == pytest.approx(0.2, abs=0.01)
    assert np.mean(lengths == 28) == pytest.approx(0.8**24, abs=0.001)


def test_mask_is_of_padding_not_of_rows_without_ink():
    masked, plain = (example.network(4, 6, 0.0, is_masked, 1) for is_masked in (True, False))
    masked.set_weights(plain.get_weights())
    x = np.random.default_rng(0).random((5, 28, 28)).astype("float32")
    x[:, [0, 3, 27]] = 0
    np.testing.assert_allclose(masked.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-5)
    state = plain.layers[1](x[:, :9])  # of sequences that are shorter themselves
    logits = keras.ops.convert_to_numpy(plain.layers[2](state))
    np.testing.assert_allclose(masked.predict(example.cut(x, 9), verbose=0), logits, atol=1e-5)


@pytest.fixture(scope="module")
def data(digits):
    return example.load_digits(str(digits))


def test_a_result_is_a_function_of_its_run(data):
    run = example.Run("cut", 28, 7, 0.0, 300, 6, seed=0)
    first, other, again = (example.accuracies(r, data) for r in (run, run._replace(seed=1), run))
    assert first == again != other
    assert list(first) == list(example.LENGTHS)
    weights = example.network(28, 7, 0.0, True, 6).get_weights()
    example.restart(model := example.network(28, 7, 0.0, True, 6), 0)
    assert int(model.optimizer.iterations) == 0
    assert all(np.any(a != b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_the_made_task_is_trained_on(data, monkeypatch):
    given, batches = [], example.batches
    monkeypatch.setattr(example, "batches", lambda x, *a, **k: given.append(x) or batches(x, *a, **k))
    found = example.accuracies(example.Run("made", 1, 4, 1e-6, 300, 1, seed=0), data)
    assert list(found) == [example.ROWS]
    assert given[0].shape == (300, 28, 28)
    assert given[0].std() == pytest.approx(0.1, rel=0.01)


def test_script_writes_what_it_says_and_goes_on(digits, tmp_path, monkeypatch, capsys):
    def accuracies(run, data):  # as a function of the run, without training
        lengths = example.LENGTHS if run.task == "cut" else [example.ROWS]
        return {n: (n + run.block_size) / 60 for n in lengths}

    def run_script():
        options = ["--quick", "--seeds", 1, "--epochs", 1, "--data", digits, "--out", tmp_path]
        monkeypatch.setattr(sys, "argv", ["should_you_untie.py", *map(str, options)])
        example.main()
        return capsys.readouterr().out

    monkeypatch.setattr(example, "accuracies", accuracies)
    run_script()
    written = (tmp_path / "results.csv").read_text()
    table = pd.read_csv(tmp_path / "results.csv")
    plan = example.plan(example.ENDS, example.ENDS, 640, 5, 0)
    assert list(dict.fromkeys(table[list(example.Run._fields)].itertuples(index=False, name=None))) == plan
    assert len(table) == len(plan) + 3 * (len(example.LENGTHS) - 1)  # each length of `cut` has its row
    np.testing.assert_allclose(table.accuracy, (table.length + table.block_size) / 60, rtol=1e-4)
    counts = [example.parameters(k, n) for k, n in zip(table.block_size, table.units, strict=True)]
    assert table.parameters.tolist() == counts
    assert (tmp_path / "results.png").stat().st_size > 5000

    lines = written.splitlines(keepends=True)
    (tmp_path / "results.csv").write_text("".join(lines[:-1]))  # interrupted before the last run
    assert run_script().count("seed 0: ") == 1
    assert (tmp_path / "results.csv").read_text() == written
