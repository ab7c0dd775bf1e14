"""The package as a whole: what is public, documented and shipped."""

import importlib.metadata
import inspect
import pathlib
import re
import subprocess
import sys

import keras
import pytest
from conftest import BACKEND

import untied_rnn

ROOT = pathlib.Path(__file__).parent.parent
PUBLIC = [getattr(untied_rnn, name) for name in untied_rnn.__all__]
EXTRAS = ["matplotlib", "mlxtend", "pandas", "tensorflow"]
LAYERS = [cls for cls in PUBLIC if issubclass(cls, keras.Layer)]


def test_version_has_one_source():
    assert untied_rnn.__version__ == importlib.metadata.version("untied-rnn")
    assert (pathlib.Path(untied_rnn.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("cls", PUBLIC)
def test_docstring_names_every_argument_once(cls):
    documented = inspect.getdoc(cls).split("Args:\n")[1].split("\n\n")[0]
    names = re.findall(r"^    (\**\w+): ", documented, flags=re.MULTILINE)
    signature = inspect.signature(cls).parameters.values()
    assert names == [f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name for p in signature]


@pytest.mark.parametrize("cls", PUBLIC)
def test_docstring_has_every_section(cls):
    text = inspect.getdoc(cls)
    sections = ["Args", "Raises", "References"]
    if cls in LAYERS:
        sections += ["Call arguments", "Input shape", "Output shape", "Variables", "Masking"]
    for section in sections:
        assert f"\n{section}:\n" in text, section


def long_if(trains, value, name):
    """A parameter of a test that is left to the release tests if its code trains a model."""
    return pytest.param(value, id=name, marks=[pytest.mark.release] if trains else [])


@pytest.mark.parametrize(
    "cls", [long_if(".fit(" in inspect.getdoc(cls), cls, cls.__name__) for cls in PUBLIC]
)
def test_example_of_docstring_runs(cls):
    (example,) = re.findall(r"```python\n(.*?)```", inspect.getdoc(cls), flags=re.DOTALL)
    exec(example, {})


def test_classes_of_users_are_documented_as_far_as_they_say():
    class Mine(untied_rnn.UntiedGRU):
        """A layer.

        Args:
            extra: What it adds.
            units: Its size.
            option: What it takes out of the rest.
        """

        def __init__(self, units, extra, undocumented, **rest):
            super().__init__(units, **rest)

    class Mixin:
        """Something else."""

    class Mixed(Mixin, Mine):
        """Both."""

    names = re.findall(r"^    (\**\w+): ", inspect.getdoc(Mine).split("Args:\n")[1], flags=re.MULTILINE)
    assert names[:2] == ["units", "extra"]
    assert {"option", "jit_compile"} < set(names)
    assert inspect.getdoc(Mixed).startswith("Both.")


def examples():
    """Python blocks of the pages; blocks that import nothing are parts of programs."""
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]:
        blocks = re.findall(r"```python\n((?:from|import) .*?)```", path.read_text(), flags=re.DOTALL)
        if path.name == "first_model.md":  # a notebook, and so one program
            blocks = ["".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))]
        page = path.relative_to(ROOT).as_posix()
        found += [long_if(".search(" in block, block, f"{page}-{i}") for i, block in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize("block", examples())
def test_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for extra in EXTRAS:
        if re.search(rf"^(import|from) {extra}\b", block, flags=re.MULTILINE):
            pytest.importorskip(extra, reason=f"the page needs {extra}, an extra")
    if BACKEND == "torch" and ".export(" in block:
        pytest.skip("Keras has no SavedModel of a model on torch")
    exec(block, {"__name__": "example"})


def test_import_loads_no_more_than_it_needs():
    """With another backend the library does not load TensorFlow by itself, and on none keras-tuner."""
    names = "[name for name in ('tensorflow', 'keras_tuner') if name in sys.modules]"
    code = f"import sys, keras; before = {names}; import untied_rnn; print(before, {names}, sep='|')"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = output.split("|")
    assert before == after.strip()
    assert "keras_tuner" not in after


# What `pip install --no-deps` with Keras and a backend leaves out.
WITHOUT_THE_REST = """
import sys
from importlib.machinery import PathFinder

absent = {"tensorflow", "tensorboard", "keras_tuner", "matplotlib", "pandas", "mlxtend"}

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]

import keras
import numpy as np
from untied_rnn import UntiedLSTM, UntiedSimpleRNN, callbacks, optimizers, regularizers, selftest, sharing

layers = [UntiedLSTM(2, timesteps=4, sharing=sharing.LowRank(1), return_sequences=True), UntiedSimpleRNN(2)]
model = keras.Sequential([keras.Input((4, 3)), *layers])
model.compile("adam", "mse")
x = np.random.random((8, 4, 3)).astype("float32")
model.fit(x, np.ones((8, 2)), verbose=0)
model.save("model.keras")
loaded = keras.saving.load_model("model.keras")
np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6)

try:
    import untied_rnn.tuning
except ImportError as error:
    assert 'pip install "keras-tuner[bayesian]" six' in str(error), error
else:
    raise AssertionError("keras-tuner was imported")
assert not absent & set(sys.modules), absent & set(sys.modules)
"""


@pytest.mark.skipif(BACKEND == "tensorflow", reason="needs a backend that is installed without TensorFlow")
def test_needs_no_more_than_numpy_keras_and_a_backend(tmp_path):
    command = [sys.executable, "-c", WITHOUT_THE_REST]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
