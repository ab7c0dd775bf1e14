"""What type checkers and editors know of the library: arguments by name and type, and attributes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.release

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = """\
import keras
from untied_rnn import UntiedDense, UntiedLSTM, UntiedRNN

model = keras.Sequential(
    [
        keras.Input((28, 28)),
        UntiedLSTM(16, "tanh", return_sequences=True, timesteps=28, name="first"),
        UntiedLSTM(16, kernel_initialiser="zeros"),  # wrong
        UntiedLSTM(16, recurrent_dropout="0.1"),  # wrong
    ]
)
layer = UntiedDense(3, weigth_index=[0, 0, 1])  # wrong
units: str = layer.units  # wrong
timesteps: int | None = UntiedRNN(keras.layers.LSTMCell(4), timesteps=3).timesteps
"""
WRONG = [number for number, line in enumerate(SCRIPT.splitlines(), 1) if "# wrong" in line]


def checked(*command):
    # Pyright asks the first Python on the path where packages are.
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command, environment = [sys.executable, "-m", *command], {**os.environ, "PATH": path}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True).stdout


def test_mypy_finds_planted_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    text = checked("mypy", "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "script.py"))
    found = [int(line.split(":")[1]) for line in text.splitlines() if ": error:" in line]
    assert found == WRONG, text


def test_pyright_finds_planted_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    text = checked("pyright", "--outputjson", str(tmp_path / "script.py"))
    found = json.loads(text)["generalDiagnostics"]
    assert [problem["range"]["start"]["line"] + 1 for problem in found] == WRONG, text


def test_public_names_have_types():
    options = ("--verifytypes", "untied_rnn", "--ignoreexternal", "--outputjson")
    symbols = json.loads(checked("pyright", *options))["typeCompleteness"]["symbols"]
    unknown = {s["name"] for s in symbols if s["isExported"] and not s["isTypeKnown"]}
    # Keras and keras-tuner have no type information, so that to pyright the type of a base class is unknown.
    assert unknown == {"untied_rnn.callbacks.IntactBackup", "untied_rnn.tuning.UntiedRNNHyperModel"}
