"""The search of hidden sizes as a user runs it: interrupted, killed, in several processes."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
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
    return ["--data", digits, "--max-trials", 4, "--epochs", 4, "--units", "8:24:8"]


@pytest.fixture(scope="module")
def undisturbed(arguments, tmp_path_factory):
    """The folder and the output of a search that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "search"
    code, stdout, stderr = finish(run(SCRIPT, *arguments, "--directory", folder))
    assert code == 0, stderr
    return folder, stdout


@pytest.fixture
def example(monkeypatch):
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "")  # to have what the example sets there taken back
    monkeypatch.delenv("KERASTUNER_TUNER_ID")
    import tune_hidden_size

    return tune_hidden_size


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
    assert sorted(state["start_order"]) == sorted(state["end_order"]) == ["0", "1", "2", "3"]
    assert state["run_times"] == dict.fromkeys("0123", 1)


def test_writes_what_it_says(undisturbed, digits):
    folder, stdout = undisturbed
    trials = pd.read_csv(folder / "trials.csv")
    assert sorted(trials.trial) == [0, 1, 2, 3]
    assert list(trials.val_accuracy) == sorted(trials.val_accuracy, reverse=True)
    assert set(trials.units) <= {8, 16, 24}
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


@pytest.mark.parametrize(
    ("number", "message"),
    [(signal.SIGKILL, None), (signal.SIGINT, "interrupted: go on with the same command")],
    ids=["kill", "ctrl-c"],
)
def test_goes_on_with_an_interrupted_search(arguments, undisturbed, tmp_path, number, message):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = run(SCRIPT, *arguments, "--directory", tmp_path)
    signal.signal(signal.SIGINT, handler)
    wait_for(lambda: len(oracle(tmp_path)["end_order"]) >= 1 and oracle(tmp_path)["ongoing_trials"], process)
    process.send_signal(number)
    code, _, stderr = finish(process)
    assert code != 0, stderr
    if message is not None:
        assert stderr.splitlines()[-1] == message
    ended = oracle(tmp_path)["end_order"]
    assert 1 <= len(ended) < 4
    files = [tmp_path / f"trial_{trial}" / "trial.json" for trial in ended]
    before = [path.stat().st_mtime_ns for path in files]
    code, _, stderr = finish(run(SCRIPT, *arguments, "--directory", tmp_path))
    assert code == 0, stderr
    assert [path.stat().st_mtime_ns for path in files] == before
    assert_same_results(tmp_path, undisturbed[0])


def test_workers_search_the_same_and_a_killed_one_loses_nothing(arguments, undisturbed, tmp_path):
    process = run(SCRIPT, *arguments, "--directory", tmp_path, "--workers", 2)
    wait_for(lambda: len(oracle(tmp_path)["ongoing_trials"]) == 2, process)
    trial = oracle(tmp_path)["ongoing_trials"]["worker_0"]
    os.kill(children(process.pid)["worker_0"], signal.SIGKILL)
    code, stdout, stderr = finish(process)
    assert code == 0, stderr
    assert "Search: Running Trial #4" in stdout
    assert_same_results(tmp_path, undisturbed[0])
    assert trial in oracle(tmp_path)["end_order"]


@pytest.mark.parametrize("victim", ["the command itself", "chief"])
def test_workers_end_with_the_search(arguments, undisturbed, tmp_path, victim):
    process = run(SCRIPT, *arguments, "--directory", tmp_path, "--workers", 2)
    wait_for(lambda: len(oracle(tmp_path)["ongoing_trials"]) == 2, process)
    processes = children(process.pid)
    assert set(processes) == {"chief", "worker_0", "worker_1"}
    os.kill(processes.get(victim, process.pid), signal.SIGKILL)
    code, _, stderr = finish(process)
    assert code != 0, stderr
    assert victim != "chief" or stderr.splitlines()[-1].startswith("error: the chief ended with -9: go on")
    wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}").exists() for pid in processes.values()))
    # One process goes on with what several have begun.
    code, _, stderr = finish(run(SCRIPT, *arguments, "--directory", tmp_path))
    assert code == 0, stderr
    assert_same_results(tmp_path, undisturbed[0])


def test_worker_that_cannot_live_ends_the_search(arguments, example, tmp_path, monkeypatch):
    def dead(role, address, log):
        seconds = "60" if role == "chief" else "0"
        return subprocess.Popen(["bash", "-c", f"sleep {seconds}; exit 3"], stdin=subprocess.PIPE)

    monkeypatch.setattr(example, "start", dead)
    monkeypatch.setattr(
        sys, "argv", [SCRIPT, *map(str, arguments), "--workers", "1", "--directory", str(tmp_path)]
    )
    with pytest.raises(SystemExit, match="error: worker_0 died 4 times"):
        example.main()


@pytest.mark.parametrize("tuner", ["bayesian", "hyperband"])
def test_other_tuners(arguments, tmp_path, tuner):
    fewer = ["--epochs", 3, "--max-trials", 4 if tuner == "bayesian" else 6]
    code, stdout, stderr = finish(run(SCRIPT, *arguments, *fewer, "--tuner", tuner, "--directory", tmp_path))
    assert code == 0, stderr
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert len(trials) == fewer[-1]
    assert (trials.epochs.nunique() > 1) == (tuner == "hyperband")
    assert "best trial's model" in stdout


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
def test_wrong_arguments_end_before_the_search(
    arguments, example, tmp_path, monkeypatch, capsys, changes, message
):
    given = [SCRIPT, *map(str, arguments), "--directory", str(tmp_path), *changes]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as raised:
        example.main()
    captured = capsys.readouterr()
    assert message in (str(raised.value.code) + captured.err).splitlines()[-1]
    assert "Trial" not in captured.out


def test_another_search_in_the_directory_is_refused(arguments, undisturbed, example, monkeypatch):
    folder, _ = undisturbed
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    changed = [*map(str, arguments), "--directory", str(folder), "--seed", "5"]
    monkeypatch.setattr(sys, "argv", [SCRIPT, *changed])
    with pytest.raises(SystemExit, match="holds the search"):
        example.main()
    (folder / "oracle.json").write_bytes(before[folder / "oracle.json"][:-20])
    monkeypatch.setattr(sys, "argv", [SCRIPT, *changed[:-2]])
    with pytest.raises(SystemExit, match="error: cannot use --directory"):
        example.main()
    (folder / "oracle.json").write_bytes(before[folder / "oracle.json"])
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
