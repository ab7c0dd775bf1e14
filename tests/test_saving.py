"""Files: read in a new process with the same outputs, also without this library; damaged ones refused."""

import pathlib
import pickle
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from conftest import BACKEND, DTYPE

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Periodic, Untied

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def build(timesteps, masked=False, cls=UntiedSimpleRNN, units=4, **options):
    rows = keras.Input((timesteps, 3))
    layer = cls(units() if callable(units) else units, **options)
    model = keras.Model(rows, layer(keras.layers.Masking()(rows) if masked else rows))
    x = np.random.default_rng(1).normal(size=(7, timesteps, 3)).astype("float32")
    x[0, 2:], x[1, 0] = 0, 0
    return model, x


# Written out and a loop, which are exported as quite different programs.
CASES = {
    "written out": {"timesteps": 4, "masked": True, "output_units": 2, "return_sequences": True},
    "loop": {"timesteps": 40, "activation": "softsign"},
    "masked loop": {"timesteps": 40, "masked": True, "output_units": 2, "return_sequences": True},
    "lstm": {"timesteps": 40, "cls": UntiedLSTM},
    "gru, shared": {"timesteps": 40, "cls": UntiedGRU, "sharing": Blocks(7)},
    "simple, period and frozen": {
        "timesteps": 5,
        "output_units": 2,
        "sharing": Periodic(2),
        "frozen_timesteps": [1],
    },
    "dense, shared": {"timesteps": 5, "cls": UntiedDense, "sharing": Listed([0, 1, 0, 2, 1])},
    "lstm, low rank": {"timesteps": 40, "cls": UntiedLSTM, "sharing": LowRank(2, Blocks(7))},
    "dense, spline": {"timesteps": 5, "cls": UntiedDense, "sharing": Basis(3)},
    "any cell": {"timesteps": 6, "cls": UntiedRNN, "units": lambda: keras.layers.LSTMCell(4)},
    "any cell, shared": {
        **{"timesteps": 40, "cls": UntiedRNN, "units": lambda: keras.layers.GRUCell(4)},
        **{"sharing": Periodic(3), "return_sequences": True},
    },
}


# New processes take seconds to start, and models to compile there.
cases = pytest.mark.parametrize(
    "names",
    [
        ["masked loop", "lstm, low rank", "any cell, shared"],
        pytest.param(list(CASES), marks=pytest.mark.release),
    ],
)


@pytest.fixture
def models(names, tmp_path):
    """The models of the cases by the folders of their files, with inputs in two batch sizes."""
    found = {}
    for name in names:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        model, x = build(**CASES[name])
        np.savez(folder / "inputs.npz", one=x[:1], seven=x)
        found[folder] = model
    return found


def check_in_new_process(models, run, absent=()):
    """Code that reads the files in a new process gives the same outputs as the models.

    Args:
        models: Models by the folder of their files.
        run: Python code that defines `run`, which returns the outputs by the names of the inputs.
        absent: Modules that cannot be imported in the new process.
    """
    code = f"""
import pathlib, sys
import numpy as np
sys.modules.update(dict.fromkeys({list(absent)}))
{run}
for folder in map(pathlib.Path, sys.argv[1:]):
    with np.load(folder / "inputs.npz") as inputs:
        np.savez(folder / "outputs.npz", **run(folder, inputs))
"""
    ended = subprocess.run([sys.executable, "-c", code, *models], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for folder, model in models.items():
        with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
            assert sorted(outputs) == sorted(inputs)
            for name, x in inputs.items():
                np.testing.assert_allclose(outputs[name], model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@cases
def test_keras_file_is_read_in_a_new_process(models):
    for folder, model in models.items():
        model.save(folder / "model.keras")
    run = """
import keras, untied_rnn
def run(folder, inputs):
    model = keras.saving.load_model(folder / "model.keras")
    return {name: model.predict(x, verbose=0) for name, x in inputs.items()}
"""
    check_in_new_process(models, run)


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5", "model.h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")  # that is what is asked for
def test_weights_come_back_into_another_model(file, tmp_path):
    case = {"timesteps": 4, "output_units": 2, "return_sequences": True}
    (model, x), (other, _) = build(**case), build(**case)
    (model.save_weights if file == "model.weights.h5" else model.save)(tmp_path / file)
    assert not np.allclose(other.predict(x, verbose=0), model.predict(x, verbose=0))
    if file == "model.h5":
        other = keras.saving.load_model(tmp_path / file)
    else:
        other.load_weights(tmp_path / file)
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize("dtype", [DTYPE, "mixed_float16", "bfloat16"])
def test_weights_come_back_in_every_precision(dtype, tmp_path):
    options = {"timesteps": 4, "recurrent_initializer": "glorot_uniform", "dtype": dtype}
    (model, x), (other, _) = build(**options), build(**options)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


# Exports, which must run where this library is not.


@pytest.mark.parametrize(
    "names", [["any cell, shared"], pytest.param(list(CASES), marks=pytest.mark.release)]
)
@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no SavedModel of a model on torch")
def test_saved_model_runs_without_the_library(models):
    if BACKEND == "jax":  # jax2tf cannot compare the size of a mask, a constant there, with an unknown batch
        models = {folder: model for folder, model in models.items() if "masked_loop" not in folder.name}
    for folder, model in models.items():
        model.export(folder / "exported", verbose=False)
    run = """
import tensorflow as tf
def run(folder, inputs):
    model = tf.saved_model.load(folder / "exported")
    return {name: model.serve(x).numpy() for name, x in inputs.items()}
"""
    check_in_new_process(models, run, absent=["untied_rnn"])


@pytest.mark.release
@pytest.mark.parametrize("names", [list(CASES)], ids=["all"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exported from TensorFlow; once is enough")
def test_litert_file_has_built_in_operations_only_and_runs_without_the_library(models):
    pytest.importorskip("ai_edge_litert", reason="LiteRT's interpreter is not installed")
    for folder, model in models.items():
        model.layers[-1].unroll = True  # for LiteRT's loops are operations of TensorFlow
        model.export(folder / "model.tflite", format="litert", verbose=False)
        model.layers[-1].unroll = "auto"
    run = """
from ai_edge_litert.interpreter import Interpreter
def run(folder, inputs):
    interpreter, outputs = Interpreter(str(folder / "model.tflite")), {}
    names = {details["op_name"] for details in interpreter._get_ops_details()}  # nothing public lists them
    assert not any("Flex" in name or "CUSTOM" in name for name in names), names
    (entry,), (exit,) = interpreter.get_input_details(), interpreter.get_output_details()
    for name, x in inputs.items():
        interpreter.resize_tensor_input(entry["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], x)
        interpreter.invoke()
        outputs[name] = interpreter.get_tensor(exit["index"])
    return outputs
"""
    check_in_new_process(models, run, absent=["untied_rnn", "tensorflow"])


@pytest.mark.release
@pytest.mark.parametrize("names", [list(CASES)], ids=["all"])
@pytest.mark.skipif(BACKEND != "tensorflow", reason="exported from TensorFlow; once is enough")
# From the converter, which is older than NumPy 2.
@pytest.mark.filterwarnings("ignore:In the future `np.object`:FutureWarning")
def test_onnx_file_runs_without_the_library(models):
    pytest.importorskip("onnxruntime", reason="ONNX's runtime is not installed")
    pytest.importorskip("tf2onnx", reason="the converter to ONNX is not installed")
    for folder, model in models.items():
        model(np.ones((1, *model.input_shape[1:]), "float32"))  # Keras exports no model that was never called
        model.export(folder / "model.onnx", format="onnx", verbose=False)
    run = """
import onnxruntime
def run(folder, inputs):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (entry,) = session.get_inputs()
    return {name: session.run(None, {entry.name: x})[0] for name, x in inputs.items()}
"""
    check_in_new_process(models, run, absent=["untied_rnn", "tensorflow"])


# Files of every release.

SHARINGS = {
    "0.1.0": [Untied(), Untied()],
    "0.2.0": [Untied(), LowRank(1), Periodic(3), Blocks(2), Basis(2), Untied()],
}


@pytest.mark.parametrize("version", sorted(path.name for path in FIXTURES.iterdir() if path.is_dir()))
def test_files_of_earlier_releases_are_read(version):
    folder = FIXTURES / version
    model = keras.saving.load_model(folder / "model.keras")
    with np.load(folder / "expected.npz") as expected:
        np.testing.assert_allclose(
            model.predict(expected["x"], verbose=0), expected["y"], rtol=1e-5, atol=1e-6
        )
        other = keras.models.clone_model(model)
        other.load_weights(folder / "model.weights.h5")
        np.testing.assert_allclose(
            other.predict(expected["x"], verbose=0), expected["y"], rtol=1e-5, atol=1e-6
        )
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 3
    assert model.layers[2].output_units == 2
    assert [layer.sharing for layer in model.layers if hasattr(layer, "sharing")] == SHARINGS[version]


# Damaged and foreign files.

# What Keras says in addition when a layer could not be loaded.
and_a_warning = pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")


def flipped(path, where):
    """One bit flipped in the first copy of the bytes `where`."""
    content = bytearray(path.read_bytes())
    content[content.index(where) + len(where) // 2] ^= 16
    path.write_bytes(content)


@and_a_warning
@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("weight", [0, 1, 2])
def test_flipped_bit_in_the_weights_is_an_error(file, weight, tmp_path):
    model, _ = build(timesteps=4, bias_initializer="random_normal")
    path = tmp_path / file
    (model.save_weights if file == "model.weights.h5" else model.save)(path)
    flipped(path, np.ascontiguousarray(model.get_weights()[weight]).tobytes())
    other = keras.models.clone_model(model)
    before = other.get_weights()
    error, message = ValueError, r"weights of layer 'untied_simple_rnn.*damaged"
    if file == "model.keras":  # there the archive's own checksum may be the first to tell
        error, message = (ValueError, zipfile.BadZipFile), "damaged|CRC"
    with pytest.raises(error, match=message):
        other.load_weights(path)
    for old, new in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    if file == "model.keras":
        with pytest.raises(error, match=message):
            keras.saving.load_model(path)


@and_a_warning
@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_no_damage_goes_unnoticed(file, tmp_path):
    """Bits flipped all over the file, and files cut short: an error, or the very weights that were stored."""
    model, _ = build(timesteps=4)
    path, stored = tmp_path / file, model.get_weights()
    (model.save_weights if file == "model.weights.h5" else model.save)(path)
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    errors = 0
    for trial in range(30):
        content = bytearray(whole)
        if trial % 3:
            content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        else:
            content = content[: rng.integers(len(whole))]
        path.write_bytes(content)
        other = keras.models.clone_model(model)
        try:
            other.load_weights(path)
        except Exception:  # of Keras, h5py or zipfile, or of this library
            errors += 1
            continue
        for expected, received in zip(stored, other.get_weights(), strict=True):
            np.testing.assert_array_equal(received, expected)
    assert errors >= 10  # those cut short at the least


@and_a_warning
@pytest.mark.parametrize(
    "other",
    [
        {"timesteps": 5},
        {"timesteps": 4, "use_bias": False},
        {"timesteps": 4, "output_units": 2},
    ],
)
def test_weights_of_another_shape_are_an_error(other, tmp_path):
    model, _ = build(timesteps=4)
    model.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"shape|expected \d variables"):
        build(**other)[0].load_weights(tmp_path / "model.weights.h5")


def test_nothing_is_unpickled(tmp_path):
    """A pickle under the name of a file would run code when it is read."""

    class Evil:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "unpickled",))

    for name in ("model.keras", "model.weights.h5"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    model, _ = build(timesteps=4)
    with pytest.raises(Exception, match=r"model\.keras|zip"):
        keras.saving.load_model(tmp_path / "model.keras")
    with pytest.raises(OSError, match="file signature"):
        model.load_weights(tmp_path / "model.weights.h5")
    assert not (tmp_path / "unpickled").exists()
