"""Kills, interrupts and full disks: a resumed run ends at the weights of an undisturbed one.

Run as a script (`python tests/test_faults.py FOLDER`), this file is the training that the tests of
`IntactBackup` kill.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import test_examples
from conftest import BACKEND
from test_examples import finish, run

from untied_rnn import UntiedSimpleRNN
from untied_rnn.callbacks import IntactBackup

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow" or sys.platform != "linux", reason="the examples are TensorFlow's, limits Linux's"
)
# Each run is killed twice.
MANY = pytest.param(20, marks=pytest.mark.slow)
EPOCHS = {"modern": 25, "notebook": 2}

digits = test_examples.digits


def fit(folder):
    """Without dropout, whose seeds Keras does not store, and with the same order of digits in every epoch."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 28, 28)), rng.integers(10, size=64)
    model = keras.Sequential([keras.Input((28, 28)), UntiedSimpleRNN(50), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    backup = IntactBackup(folder / "backup")
    model.fit(x, y, epochs=40, shuffle=False, callbacks=[backup], verbose=0)
    np.savez(folder / "final.npz", *state(model))


def state(model):
    """The weights and the optimizer's variables, from which training resumes."""
    return [keras.ops.convert_to_numpy(v) for v in (*model.weights, *model.optimizer.variables)]


def state_of_fit(folder):
    with np.load(folder / "final.npz") as arrays:
        return list(arrays.values())


def assert_same(a, b):
    assert len(a) == len(b) > 2
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def assert_same_results(a, b):
    """Two folders of the example: the same files, numbers and logs, and nothing unfinished."""
    assert sorted(path.name for path in a.iterdir()) == sorted(path.name for path in b.iterdir())
    assert (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()
    assert_same(*(state(keras.saving.load_model(folder / "model.keras")) for folder in (a, b)))


def assert_files_whole(folder):
    for path in folder.glob("[!u]*"):  # all but `unfinished_`
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".keras" or path.name == "backup":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None


def killed(process, seconds):
    """Lets a process run for so long and kills it, unless it has ended well by then."""
    try:
        _, stderr = process.communicate(timeout=seconds)
        assert process.returncode == 0, stderr
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    return process.returncode == -signal.SIGKILL


def kill_many(runs, start, tmp_path, seconds, check):
    """Kills spread over all of a process's life, two to a run; `check` is called for each run's folder.

    `seconds` is how long a process takes. Where other work has slowed that one down, a kill can come too
    late: the first one of a run is then tried again with what the process has taken now.
    """
    rng = np.random.default_rng(runs)
    shares = ((rng.permutation(2 * runs) + rng.random(2 * runs)) / (2 * runs)).reshape(runs, 2)
    kills = writing = 0
    for i, pair in enumerate(shares):
        folder = tmp_path / f"killed_{i}"
        folder.mkdir()
        for order, share in enumerate(pair):
            begin = time.monotonic()
            while not (hit := killed(start(folder), share * seconds)) and order == 0:
                seconds, begin = time.monotonic() - begin, time.monotonic()
                shutil.rmtree(folder)
                folder.mkdir()
            left = sorted(path.name for path in folder.iterdir() if path.is_file())
            print(f"run {i}: {'killed' if hit else 'ended'} at {share:.2f} of {seconds:.1f} s, files {left}")
            assert_files_whole(folder)
            kills, writing = kills + hit, writing + (hit and "unfinished" in "".join(left))
        code, _, stderr = finish(start(folder))
        assert code == 0, stderr
        check(folder)
    print(f"{runs} of {runs} runs bit-equal, {kills} kills, {writing} of them while a file was written")
    # Files are written for much of the time: a few kills may all miss it, many do not.
    assert writing or runs == 1


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory):
    """For a recipe: arguments of the example, a folder with its results, and how long it took."""
    known = {}

    def results(recipe="modern"):
        if recipe not in known:
            arguments = ["--data", digits, "--recipe", recipe, "--epochs", EPOCHS[recipe]]
            folder, start = tmp_path_factory.mktemp(recipe), time.monotonic()
            code, _, stderr = finish(run("mnist_rows.py", *arguments, "--out", folder))
            assert code == 0, stderr
            known[recipe] = arguments, folder, time.monotonic() - start
        return known[recipe]

    return results


@pytest.fixture(scope="module")
def main():
    """The example in this process: a function of its arguments."""
    import mnist_rows

    def call(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["mnist_rows.py", *map(str, arguments)])
            mnist_rows.main()

    return call


@pytest.fixture(scope="module")
def finished(main, digits, tmp_path_factory):
    """Arguments of the example, and a folder with what it then writes."""
    arguments, folder = ["--data", digits, "--epochs", 2], tmp_path_factory.mktemp("finished")
    main(*arguments, "--out", folder)
    return arguments, folder


@pytest.mark.parametrize("runs", [pytest.param(1, marks=pytest.mark.release), MANY])
def test_fit_killed_anywhere_ends_at_the_same_weights(tmp_path, runs):
    def start(folder):
        return run(__file__, folder)

    whole = tmp_path / "whole"
    whole.mkdir()
    begin = time.monotonic()
    code, _, stderr = finish(start(whole))
    assert code == 0, stderr
    seconds, expected = time.monotonic() - begin, state_of_fit(whole)
    kill_many(runs, start, tmp_path, seconds, lambda folder: assert_same(state_of_fit(folder), expected))


@pytest.mark.parametrize("runs", [MANY])  # one is below, as the first of the faults
def test_example_killed_anywhere_ends_at_the_same_weights(undisturbed, tmp_path, runs):
    arguments, whole, seconds = undisturbed()
    kill_many(
        runs,
        lambda folder: run("mnist_rows.py", *arguments, "--resume", "--out", folder),
        tmp_path,
        seconds,
        lambda folder: assert_same_results(folder, whole),
    )


def fill_disk(process):
    """No file may grow any more: the next write fails as it does on a full disk."""
    import resource

    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.release
@pytest.mark.parametrize(
    ("recipe", "fault", "message"),
    [
        ("modern", subprocess.Popen.kill, None),
        ("notebook", lambda process: process.send_signal(signal.SIGINT), "interrupted: go on with"),
        ("modern", fill_disk, "error: cannot use --out"),
    ],
    ids=["kill", "ctrl-c", "full-disk"],
)
def test_run_resumes_to_the_same_weights(undisturbed, tmp_path, recipe, fault, message):
    arguments, whole, _ = undisturbed(recipe)
    # A shell's background processes ignore Ctrl-C, and so would what they start.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = run("mnist_rows.py", *arguments, "--out", tmp_path)
    signal.signal(signal.SIGINT, handler)
    while not (tmp_path / "checkpoint.keras").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    fault(process)
    code, _, stderr = finish(process)
    assert code != 0
    assert "Traceback" not in stderr
    if message is not None:
        assert stderr.splitlines()[-1].startswith(message)
    assert_files_whole(tmp_path)
    assert not (tmp_path / "model.keras").exists()
    code, stdout, stderr = finish(run("mnist_rows.py", *arguments, "--resume", "--out", tmp_path))
    assert code == 0, stderr
    assert "Epoch 1/" not in stdout
    assert not list(tmp_path.glob("unfinished_*"))
    assert_same_results(tmp_path, whole)


def test_run_killed_after_its_last_epoch_is_finished(finished, main, tmp_path, monkeypatch, capsys):
    arguments, whole = finished
    folder = shutil.copytree(whole, tmp_path / "killed")
    (folder / "model.keras").unlink()
    (folder / "learning_curve.png").unlink()
    with (folder / "metrics.csv").open("a") as file:
        file.write('2,0.9,"0.')
    written, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: [written.append(b.name), replace(a, b)])
    main(*arguments, "--resume", "--out", folder)
    assert "Epoch" not in capsys.readouterr().out
    assert written == ["metrics.csv", "model.keras", "learning_curve.png"]
    assert_same_results(folder, whole)


@pytest.mark.parametrize("moment", ["unlink", "replace"])
def test_new_run_never_leaves_its_settings_beside_an_older_checkpoint(
    finished, main, tmp_path, monkeypatch, moment
):
    """Or `--resume` would continue the older run as if it were the new one."""
    arguments, whole = finished
    folder = shutil.copytree(whole, tmp_path / "older")
    settings = (folder / "settings.json").read_text()
    module, act = {"unlink": (pathlib.Path, pathlib.Path.unlink), "replace": (os, os.replace)}[moment]

    def die(*paths, **options):
        if paths[-1].name in ("checkpoint.keras", "settings.json"):
            raise SystemError("killed")
        return act(*paths, **options)

    monkeypatch.setattr(module, moment, die)
    with pytest.raises(SystemError, match="killed"):
        main(*arguments, "--seed", 1, "--out", folder)
    assert (folder / "settings.json").read_text() == settings
    assert (folder / "checkpoint.keras").exists() == (moment == "unlink")


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["new", "resume"])
@pytest.mark.parametrize("kind", ["full", "nearly full", "file"])
def test_no_room_is_an_error_before_training(finished, main, tmp_path, monkeypatch, capsys, kind, resume):
    arguments, whole = finished
    folder = shutil.copytree(whole, tmp_path / "older")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = folder
    if kind == "full":  # a device that answers as a full disk
        (folder / "unfinished_checkpoint.keras").symlink_to("/dev/full")
    elif kind == "nearly full":  # room for the trial and no more
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    else:
        out = folder / "settings.json"
    with pytest.raises(SystemExit) as raised:
        main(*arguments, *resume, "--out", out)
    assert str(raised.value.code).startswith(f"error: cannot use --out {out}")
    assert "\n" not in str(raised.value.code)
    assert "Epoch" not in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["torn", "a bit flipped"])
def test_damaged_checkpoint_is_a_one_line_error(finished, main, tmp_path, damage):
    arguments, whole = finished
    folder = shutil.copytree(whole, tmp_path / "damaged")
    content = bytearray((folder / "checkpoint.keras").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "checkpoint.keras").write_bytes(content[:-1000] if damage == "torn" else content)
    with pytest.raises(SystemExit) as raised:
        main(*arguments, "--resume", "--out", folder)
    assert str(raised.value.code).startswith(f"error: cannot resume {folder}")
    assert "\n" not in str(raised.value.code)


if __name__ == "__main__":
    fit(pathlib.Path(sys.argv[1]))
