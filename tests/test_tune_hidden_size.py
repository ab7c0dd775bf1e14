"""The search of hidden sizes as a user runs it: interrupted, killed, in several processes."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import keras_tuner
import numpy as np
import pytest
import test_examples
from conftest import BACKEND
from test_examples import finish, run

pd = pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow" or sys.platform != "linux",
    reason="once is enough; finds its processes as on Linux",
)

digits = test_examples.digits
SCRIPT = "tune_hidden_size.py"
WAIT = 300


@pytest.fixture(scope="module")
def arguments(digits):
    # With this seed the first two models have one layer, and the third one two.
    shortest = ["--max-trials", 3, "--units", "4,8", "--epochs", 2, "--final-epochs", 4, "--seed", 1]
    return ["--data", digits, *shortest]


@pytest.fixture(scope="module")
def script():
    """The command within this process: a function of its arguments."""
    import tune_hidden_size

    def call(*arguments, then=tune_hidden_size.main):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KERASTUNER_TUNER_ID", "")  # to have what the example sets there taken back
            patch.delenv("KERASTUNER_TUNER_ID")
            patch.setattr(sys, "argv", [SCRIPT, *map(str, arguments)])
            return then()

    return call


@pytest.fixture
def example(script):
    import tune_hidden_size

    return tune_hidden_size


@pytest.fixture(scope="module")
def undisturbed(script, arguments, tmp_path_factory):
    """The folder and the output of a search that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "search"
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        script(*arguments, "--directory", folder)
    return folder, stdout.getvalue()


def oracle(folder):
    """keras-tuner's record of the search, of when it is not just being written."""
    try:
        return json.loads((folder / "oracle.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {"ongoing_trials": {}, "end_order": []}


def wait_for(condition, process=None):
    begin = time.monotonic()
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() - begin < WAIT
        time.sleep(0.02)


def children(parent):
    """The tuner's processes that `parent` started: their names there and their numbers."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            ppid = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_text().split("\0")
        except OSError:
            continue  # ended meanwhile
        if ppid == parent:
            found |= {v.partition("=")[2]: int(path.name) for v in environment if "TUNER_ID=" in v}
    return found


def weights(folder):
    return keras.saving.load_model(folder / "model.keras", compile=False).get_weights()


def assert_same_results(folder, expected):
    assert (folder / "trials.csv").read_text() == (expected / "trials.csv").read_text()
    for a, b in zip(weights(folder), weights(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    state = oracle(folder)
    assert sorted(state["start_order"]) == sorted(state["end_order"]) == ["0", "1", "2"]
    assert state["run_times"] == dict.fromkeys("012", 1)


def test_writes_what_it_says(undisturbed, digits):
    folder, stdout = undisturbed
    trials = pd.read_csv(folder / "trials.csv")
    assert sorted(trials.trial) == [0, 1, 2]
    assert list(trials.val_accuracy) == sorted(trials.val_accuracy, reverse=True)
    assert set(trials.units) == {4, 8}
    for trial in trials.itertuples():
        record = json.loads((folder / f"trial_{trial.trial}" / "trial.json").read_text())
        assert record["score"] == trial.val_accuracy
        assert record["hyperparameters"]["values"]["units"] == trial.units
        layers = [28, *[trial.units] * trial.num_layers]
        matrices = sum((a + b + 1) * b for a, b in itertools.pairwise(layers))
        assert trial.parameters == 28 * matrices + 10 * (trial.units + 1)
    assert (folder / "trials.png").read_bytes().startswith(b"\x89PNG")
    model = keras.saving.load_model(folder / "model.keras")
    assert model.layers[1].units == trials.units[0]
    assert float(model.optimizer.learning_rate) < trials.learning_rate[0] * 0.2
    with np.load(digits) as arrays:
        x, y = arrays["x_test"].astype("float32") / 255, arrays["y_test"]
    accuracy = model.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert f"best trial's model {accuracy:.4f} (200 digits)" in stdout
    assert "test accuracy of the default model" in stdout


@pytest.mark.release
def test_goes_on_with_an_interrupted_and_a_killed_search(arguments, undisturbed, tmp_path):
    files, times = [], []
    for ended, number in ((1, signal.SIGINT), (2, signal.SIGKILL)):
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = run(SCRIPT, *arguments, "--directory", tmp_path)
        signal.signal(signal.SIGINT, handler)
        wait_for(lambda n=ended: len(oracle(tmp_path)["end_order"]) >= n, process)
        process.send_signal(number)
        code, _, stderr = finish(process)
        assert code != 0, stderr
        if number == signal.SIGINT:
            assert stderr.splitlines()[-1] == "interrupted: go on with the same command"
        assert [path.stat().st_mtime_ns for path in files] == times
        files = [tmp_path / f"trial_{trial}" / "trial.json" for trial in oracle(tmp_path)["end_order"]]
        assert ended <= len(files) < 3
        times = [path.stat().st_mtime_ns for path in files]
    code, _, stderr = finish(run(SCRIPT, *arguments, "--directory", tmp_path))
    assert code == 0, stderr
    assert [path.stat().st_mtime_ns for path in files] == times
    assert_same_results(tmp_path, undisturbed[0])


@pytest.mark.release
def test_workers_search_the_same_and_a_killed_one_loses_nothing(arguments, undisturbed, tmp_path):
    process = run(SCRIPT, *arguments, "--directory", tmp_path, "--workers", 2)
    wait_for(lambda: len(oracle(tmp_path)["ongoing_trials"]) == 2, process)
    trial = oracle(tmp_path)["ongoing_trials"]["worker_0"]
    os.kill(children(process.pid)["worker_0"], signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert "Search: Running Trial #3" in stdout
    assert_same_results(tmp_path, undisturbed[0])
    assert trial in oracle(tmp_path)["end_order"]


def last_line_after_the_end_of(victim, arguments, folder):
    """Kills one of the processes of a search by a worker; then all of them have to end."""
    process = run(SCRIPT, *arguments, "--directory", folder, "--workers", 1)
    wait_for(lambda: oracle(folder)["ongoing_trials"] and "worker_0" in children(process.pid), process)
    processes = children(process.pid)
    assert set(processes) == {"chief", "worker_0"}
    os.kill(processes.get(victim, process.pid), signal.SIGKILL)
    code, _, stderr = finish(process)
    assert code != 0, stderr
    wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in processes.values()))
    return stderr.splitlines()[-1]


@pytest.mark.release
def test_workers_end_with_the_search(arguments, undisturbed, tmp_path):
    last_line_after_the_end_of("the command itself", arguments, tmp_path)
    last_line = last_line_after_the_end_of("chief", arguments, tmp_path)
    assert last_line.startswith("error: the chief ended with -9: go on")
    # A single process resumes what several have begun.
    code, _, stderr = finish(run(SCRIPT, *arguments, "--directory", tmp_path))
    assert code == 0, stderr
    assert_same_results(tmp_path, undisturbed[0])


def test_worker_that_cannot_live_ends_the_search(script, arguments, example, tmp_path, monkeypatch):
    def dead(role, address, log):
        seconds = "60" if role == "chief" else "0"
        return subprocess.Popen(["bash", "-c", f"sleep {seconds}; exit 3"], stdin=subprocess.PIPE)

    monkeypatch.setattr(example, "start", dead)
    with pytest.raises(SystemExit, match="error: worker_0 died 4 times"):
        script(*arguments, "--workers", 1, "--directory", tmp_path)


@pytest.mark.parametrize(
    ("tuner", "kind", "trials"),
    [
        ("random", keras_tuner.RandomSearch, 12),
        ("bayesian", keras_tuner.BayesianOptimization, 12),
        ("hyperband", keras_tuner.Hyperband, None),
    ],
)
def test_tuners(script, example, tmp_path, tuner, kind, trials):
    given = ["--tuner", tuner, "--directory", tmp_path, "--epochs", 9, "--units", "5:9:2", "--seed", 3]
    for more, expected in (([], trials), (["--max-trials", 4], 4)):
        made = example.make_tuner(script(*given, *more, then=example.parse))
        assert isinstance(made, kind)
        assert (made.oracle.max_trials, made.oracle.seed) == (expected, 4)
        assert getattr(made.oracle, "max_epochs", 9) == 9
        assert made.project_dir == str(tmp_path)
        assert list(made.hypermodel.ranges["units"]) == [5, 7, 9]


@pytest.mark.release
def test_hyperband_in_full(script, arguments, tmp_path, capsys):
    fewer = ["--epochs", 3, "--max-trials", 4]
    script(*arguments, *fewer, "--tuner", "hyperband", "--directory", tmp_path)
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert sorted(trials.epochs) == [1, 1, 1, 3]
    assert "best trial's model" in capsys.readouterr().out


def test_pareto_front(example, rng):
    trials = pd.DataFrame({"units": rng.integers(1, 9, 40), "val_accuracy": rng.integers(0, 20, 40) / 20})
    trials.loc[3, "val_accuracy"] = None
    front = example.pareto_front(trials)
    expected = {
        (t.units, t.val_accuracy)
        for t in trials.dropna().itertuples()
        if not any(
            o.units <= t.units and o.val_accuracy >= t.val_accuracy and tuple(o)[1:] != tuple(t)[1:]
            for o in trials.dropna().itertuples()
        )
    }
    assert set(front.itertuples(index=False, name=None)) == expected
    assert len(front) == len(expected) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--units", "5:3"], "expected LOW:HIGH:STEP or A,B,C, received 5:3"),
        (["--units", "0:4:1"], "expected LOW:HIGH:STEP or A,B,C, received 0:4:1"),
        (["--units", "16:8:1"], "expected LOW:HIGH:STEP or A,B,C, received 16:8:1"),
        (["--epochs", "0"], "positive integer"),
        (["--data", "no such file.npz"], "is not a digits file"),
        (["--directory", "/dev/null/out"], "cannot use --directory"),
    ],
)
def test_wrong_arguments_end_before_the_search(script, arguments, tmp_path, capsys, changes, message):
    with pytest.raises(SystemExit) as raised:
        script(*arguments, "--directory", tmp_path, *changes)
    captured = capsys.readouterr()
    assert message in (str(raised.value.code) + captured.err).splitlines()[-1]
    assert "Trial" not in captured.out


def test_another_search_in_the_directory_is_refused(script, arguments, undisturbed):
    folder, _ = undisturbed
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(SystemExit, match="holds the search"):
        script(*arguments, "--directory", folder, "--seed", 5)
    (folder / "oracle.json").write_bytes(before[folder / "oracle.json"][:-20])
    with pytest.raises(SystemExit, match="error: cannot use --directory"):
        script(*arguments, "--directory", folder)
    (folder / "oracle.json").write_bytes(before[folder / "oracle.json"])
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
