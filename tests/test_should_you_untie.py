"""The comparison of tied and untied layers: its parts, and the script as a user runs it."""

import sys

import keras
import numpy as np
import pytest
import test_examples
from conftest import BACKEND, InThisProcess

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[examples]`")
pd = pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)

import should_you_untie as example  # noqa: E402 (what it needs is looked for first)
import untying_pictures  # noqa: E402 (what it needs is looked for first)
import untying_settings  # noqa: E402 (what it needs is looked for first)
import untying_tasks  # noqa: E402 (what it needs is looked for first)
import untying_times  # noqa: E402 (what it needs is looked for first)

digits = test_examples.digits
TIMES = pd.DataFrame(
    [(name, n, 0, n / 10, n / 30) for name in untying_settings.SETTINGS for n in untying_times.SIZES],
    columns=["setting", "units", "parameters", "step_ms", "prediction_ms"],
)


@pytest.mark.parametrize("setting", untying_settings.SETTINGS)
def test_units_are_those_of_equal_parameter_count(setting):
    budget = 40_000
    units = untying_settings.units_for(setting, budget)
    assert untying_settings.network(setting, units).count_params() == untying_settings.parameters(
        setting, units
    )
    off = [abs(untying_settings.parameters(setting, units + i) - budget) for i in (-1, 0, 1)]
    assert min(off) == off[1] < 0.03 * budget  # one unit more or less is 6 % of the untied layer


def test_settings_have_the_weights_that_their_names_say():
    kernel, recurrent = 28 * 9, 9 * 9
    head = 10 * 10
    expected = {
        "tied": kernel + recurrent + 9,
        "biases untied": kernel + recurrent + 28 * 9,
        "kernel untied": 28 * kernel + recurrent + 9,
        "recurrent untied": kernel + 28 * recurrent + 9,
        "blocks of 7": 4 * (kernel + recurrent + 9),
        "basis of 4": 4 * (kernel + recurrent + 9),
        "untied": 28 * (kernel + recurrent + 9),
    }
    assert {name: untying_settings.parameters(name, 9) - head for name in expected} == expected


def test_units_as_fast_are_of_lines_through_all_sizes():
    errors = np.resize([0.1, -0.1, -0.1, 0.1], len(TIMES))
    slopes = np.where(TIMES.setting == "tied", 1, 2) / 1000
    ladder = TIMES.assign(step_ms=3 + slopes * TIMES.units**2 + errors)
    assert untying_times.units_as_fast(ladder, "untied", ("untied", 70)) == 70
    assert untying_times.units_as_fast(ladder, "tied", ("untied", 70)) == pytest.approx(99, abs=2)


def test_units_as_fast_are_among_measured_ones_whatever_the_noise():
    ladder = TIMES.assign(step_ms=np.where(TIMES.setting == "tied", 300 - TIMES.units, TIMES.units))
    assert untying_times.units_as_fast(ladder, "tied", ("untied", 70)) == max(untying_times.SIZES)


def test_times_are_of_each_model():
    found = untying_times.measured([("tied", 3), ("low rank 1", 4)], rounds=1)
    assert list(found.columns) == list(TIMES.columns)
    assert found[["setting", "units"]].values.tolist() == [["tied", 3], ["low rank 1", 4]]
    assert (found[["step_ms", "prediction_ms"]] > 0).all(axis=None)


def test_rates_are_those_of_the_best_held_out_accuracy():
    runs = example.tuning(("tied",), {"tied": {"size": 50, "time": 50}}, example.RATES, 300, 10)
    assert len(runs) == 2 * len(example.RATES)
    accuracies = [0.5, 0.7, 0.6, 0.3, 0.1, 0.2]
    found = [
        run._asdict() | {"part": part, "accuracy": accuracy if part == "held out" else -accuracy}
        for run, accuracy in zip(runs, accuracies, strict=True)
        for part in ("held out", "test")
    ]
    found.append(found[4] | {"steps": 20, "accuracy": 0.9})  # of other training
    chosen = example.chosen_rates(pd.DataFrame(found), 10)
    assert chosen == {("rows", "tied", 50): example.RATES[1], ("noise", "tied", 50): example.RATES[0]}


def test_results_are_of_the_chosen_rate():
    runs = example.tuning(
        ("tied", "untied"), {"tied": {"size": 50}, "untied": {"size": 50}}, (1e-3, 2e-3), 9, 1
    )
    rates = {(run.task, run.setting, run.units): 1e-3 for run in runs} | {("noise", "tied", 50): 2e-3}
    found = untying_pictures.chosen(pd.DataFrame(runs), rates)
    assert {(run.task, run.setting, run.units): run.rate for run in found.itertuples()} == rates
    assert len(found) == len(rates)


def rates_of(settings, units, rate=2e-3):
    tasks = ("rows", "noise")
    return {(task, name, n): rate for task in tasks for name in settings for n in units[name].values()}


def test_plan_has_each_run_once():
    settings = tuple(untying_settings.SETTINGS)
    units = {name: example.sizes(name, TIMES) for name in settings}
    rates = rates_of(settings, units)
    rates["noise", "untied", 50] = 1e-3
    runs = example.plan(settings, units, rates, 50_000, 10, 3)
    assert len(set(runs)) == len(runs) == 2 * 12 * 3 + 5 + 3 * 4 + 2 * 3
    assert {run.seed for run in runs} == {3}
    assert {run.task for run in runs if run.setting == untying_settings.SMOOTH} == {"cut"}
    assert [run.setting for run in runs if run.steps == 20] == 2 * list(example.ENDS)
    assert {(run.task, run.setting, run.units) for run in runs if run.rate == 1e-3} == {
        ("noise", "untied", 50)
    }


def test_noise_is_linear_with_matrices_that_differ():
    x, y = (np.asarray(part) for part in untying_tasks.noise(2000, (7, 0)))
    assert (x.shape, y.dtype) == ((2000, 28, 28), np.int32)
    assert x.std() == pytest.approx(0.1, rel=0.01)
    assert len(np.unique(y)) == 10
    sums = sum(x[:, t] @ untying_tasks.matrices()[t] for t in range(28))
    assert np.mean(sums.argmax(axis=1) == y) > 0.999  # but for rounding
    other, _ = untying_tasks.noise(2000, (8, 0))
    assert np.abs(x - other).max() > 0.1


def test_cut_digits_end_after_their_length():
    x = np.zeros((2, 28, 28), "float32")
    rows = (untying_tasks.cut(x, np.array([5, 28])) == 0).all(axis=2)
    assert rows.sum(axis=1).tolist() == [5, 28]
    assert rows[0, :5].all()
    np.testing.assert_array_equal(untying_tasks.cut(x, 8), untying_tasks.cut(x, np.array([8, 8])))


def test_most_cut_digits_are_short():
    lengths = untying_tasks.mostly_short(100_000, np.random.default_rng(0))
    assert (lengths.min(), lengths.max()) == (4, 28)
    assert np.mean(lengths == 4) == pytest.approx(0.2, abs=0.01)
    assert np.mean(lengths == 28) == pytest.approx(0.8**24, abs=0.001)


def test_held_out_digits_are_not_trained_on(digits):
    data = untying_tasks.digits(str(digits))
    images = [{image.tobytes() for image in part[0]} for part in data]
    assert not images[0] & images[1]
    assert len(data.held_out[0]) == len(data.train[0]) // 5


def test_mask_is_of_padding_not_of_rows_without_ink():
    masked, plain = (untying_settings.network("blocks of 7", 6, is_masked) for is_masked in (True, False))
    masked.set_weights(plain.get_weights())
    x = np.random.default_rng(0).random((5, 28, 28)).astype("float32")
    x[:, [0, 3, 27]] = 0
    np.testing.assert_allclose(masked.predict(x, verbose=0), plain.predict(x, verbose=0), atol=1e-5)
    state = plain.layers[1](x[:, :9])  # of sequences that are shorter themselves
    logits = keras.ops.convert_to_numpy(plain.layers[2](state))
    np.testing.assert_allclose(masked.predict(untying_tasks.cut(x, 9), verbose=0), logits, atol=1e-5)


@pytest.mark.parametrize("task", ["cut", "noise"])
def test_a_result_is_a_function_of_its_run(digits, task):
    run = example.Run(task, "tied", 7, 300, 1e-3, 6, seed=0)
    first, other, again = (example.accuracies(r, str(digits)) for r in (run, run._replace(seed=1), run))
    assert first == again != other
    lengths = untying_tasks.LENGTHS if task == "cut" else (28,)
    assert [(row["part"], row["length"]) for row in first] == [
        (part, n) for part in ("held out", "test") for n in lengths
    ]


def test_restart_draws_weights_and_empties_the_optimizer():
    model = untying_settings.trainable("tied", 7, False, 1e-3, 6)
    before = [np.array(weight) + 1 for weight in model.get_weights()]
    model.set_weights(before)
    model.optimizer.iterations.assign(5)
    untying_settings.restart(model, 0)
    assert int(model.optimizer.iterations) == 0
    after = model.get_weights()
    assert all(np.any(a != b) for a, b in zip(before, after, strict=True))
    assert not after[2].any()  # biases start at 0
    assert not after[4].any()


def test_script_writes_what_it_says_and_goes_on(digits, tmp_path, monkeypatch, capsys):
    def accuracies(run, source):  # as a function of the run, without training
        count = untying_settings.parameters(run.setting, run.units)
        lengths = untying_tasks.LENGTHS if run.task == "cut" else (28,)
        return [
            {"parameters": count, "part": part, "length": n, "accuracy": (n + run.units) / 300}
            for part in ("held out", "test")
            for n in lengths
        ]

    def run_script():
        options = ["--quick", "--seeds", 2, "--steps", 1, "--data", digits, "--out", tmp_path]
        monkeypatch.setattr(sys, "argv", ["should_you_untie.py", *map(str, options)])
        example.main()
        return capsys.readouterr().out

    units = {name: example.sizes(name, TIMES) for name in example.ENDS}
    monkeypatch.setattr(example, "accuracies", accuracies)
    monkeypatch.setattr(example, "ProcessPoolExecutor", InThisProcess)
    asked = []

    def measured(models, rounds):
        asked.append(models)
        return pd.DataFrame([(name, n, 0, n / 10, n / 30) for name, n in models], columns=TIMES.columns)

    monkeypatch.setattr(example, "measured", measured)
    out = run_script()
    assert "NaN" not in out
    assert len(asked) == 2
    assert set(asked[1]) == {(name, n) for name, sizes in units.items() for n in sizes.values()}
    written = (tmp_path / "results.csv").read_text()
    table = pd.read_csv(tmp_path / "results.csv")
    count = len(untying_tasks.digits(str(digits)).train[0])
    plan = example.tuning(example.ENDS, units, example.RATES[-1:], count, 1)
    rates = rates_of(example.ENDS, units, example.RATES[-1])
    plan += [run for seed in (0, 1) for run in example.plan(example.ENDS, units, rates, count, 1, seed)]
    assert set(table[list(example.Run._fields)].itertuples(index=False, name=None)) == set(plan)
    np.testing.assert_allclose(table.accuracy, (table.length + table.units) / 300, rtol=1e-4)
    assert f"{(28 + 50) / 300:.4f}"[:5] in out
    for picture in ("fronts.png", "by_data.png"):
        assert (tmp_path / picture).stat().st_size > 5000

    lines = written.splitlines(keepends=True)
    (tmp_path / "results.csv").write_text("".join(lines[:-2]))  # interrupted before the last run
    assert run_script().count(", accuracy 0.") == 1
    assert (tmp_path / "results.csv").read_text() == written
    assert len(asked) == 2
