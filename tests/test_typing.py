"""What type checkers and editors know of the library: arguments by name and type, and attributes."""

import json
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
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    return result.stdout + result.stderr


def test_mypy_finds_planted_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    text = checked("mypy", "--cache-dir", str(tmp_path / "cache"), str(tmp_path / "script.py"))
    found = [int(line.split(":")[1]) for line in text.splitlines() if ": error:" in line]
    assert found == WRONG, text


def test_pyright_finds_planted_errors(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    text = checked("pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path / "script.py"))
    found = json.loads(text)["generalDiagnostics"]
    assert [problem["range"]["start"]["line"] + 1 for problem in found] == WRONG, text


def test_public_names_have_types():
    options = ("--verifytypes", "untied_rnn", "--ignoreexternal", "--outputjson", "--pythonpath")
    found = json.loads(checked("pyright", *options, sys.executable))["typeCompleteness"]
    unknown = [s["name"] for s in found["symbols"] if s["isExported"] and not s["isTypeKnown"]]
    assert found["completenessScore"] >= 0.98, unknown
