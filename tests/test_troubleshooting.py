"""Each message that the page on troubleshooting quotes, raised as a user raises it."""

import importlib
import pathlib
import re
import sys
from unittest import mock

import h5py
import keras
import numpy as np
import pytest

from untied_rnn import TimeSmoothness, UntiedGRU, UntiedLSTM, UntiedRNN
from untied_rnn.sharing import Blocks, LowRank, Periodic

PAGE = pathlib.Path(__file__).parent.parent / "docs/troubleshooting.md"
QUOTED = dict(re.findall(r"^### (.+)\n\n```text\n(.+)\n```", PAGE.read_text(), flags=re.MULTILINE))


class Uncopied(keras.layers.Layer):
    """A cell with an argument that Keras cannot write down, and without `get_config`."""

    state_size = 16

    def __init__(self, matrix):
        super().__init__()

    def call(self, inputs, states):
        return states[0], states


class Normalized(keras.layers.Layer):
    """A cell that changes a variable when it is called."""

    state_size = 16

    def build(self, input_shape):
        self.normalization = keras.layers.BatchNormalization()
        self.normalization.build((None, 16))

    def call(self, inputs, states, training=False):
        state = self.normalization(states[0], training=training)
        return state, [state]


class SomeCell(keras.layers.Layer):
    """A cell that is not registered with Keras."""

    state_size = 3

    def call(self, inputs, states):
        return inputs, [inputs]


def zeros(*shape):
    return np.zeros(shape, "float32")


def built(layer, batch_size=None):
    layer.build((batch_size, 24, 3))
    return layer


def model(layer):
    return keras.Sequential([keras.Input((24, 3)), layer])


def built_cell():
    cell = keras.layers.GRUCell(16)
    cell.build((None, 3))
    return cell


def untie_a_cell_without_configuration():
    tied = keras.layers.RNN(Uncopied(np.eye(16)))
    tied(zeros(8, 24, 3))
    UntiedRNN.from_tied(tied, timesteps=24)


def load_without_import():
    model(UntiedGRU(16)).save("model.keras")
    known = keras.saving.get_custom_objects()
    with mock.patch.dict(known):
        del known["untied_rnn>UntiedGRU"]
        keras.saving.load_model("model.keras")


def load_a_cell_without_its_class():
    model(UntiedRNN(SomeCell())).save("cell.keras")
    keras.saving.load_model("cell.keras")


def load_a_tied_file():
    model(keras.layers.GRU(16)).save_weights("tied.weights.h5")
    model(UntiedGRU(16)).load_weights("tied.weights.h5")


def load_a_damaged_file():
    damaged = model(UntiedGRU(16, name="states"))
    damaged.save_weights("damaged.weights.h5")
    with h5py.File("damaged.weights.h5", "r+") as file:
        (layer,) = file["layers"].values()
        layer["vars"]["0"][0] += 1
    damaged.load_weights("damaged.weights.h5")


def import_plot_without_matplotlib():
    with mock.patch.dict(sys.modules, {"matplotlib": None}):
        sys.modules.pop("untied_rnn.plot", None)
        importlib.import_module("untied_rnn.plot")


RAISES = {
    "A sequence is too long": lambda: UntiedGRU(16, timesteps=28)(zeros(8, 30, 3)),
    "The number of timesteps is unknown": lambda: UntiedGRU(16)(keras.Input((None, 3))),
    "The input has no time axis": lambda: UntiedGRU(16)(zeros(8, 3)),
    "The mask has another shape": lambda: UntiedGRU(16)(zeros(8, 28, 3), mask=np.ones((8, 28, 3), bool)),
    "The initial state has another shape": lambda: UntiedLSTM(16)(
        zeros(8, 28, 3), initial_state=zeros(8, 16)
    ),
    "A loop of undefined length cannot be written out": lambda: UntiedGRU(16, timesteps=24, unroll=True)(
        keras.Input((None, 3))
    ),
    "A stateful layer has no batch size": lambda: UntiedGRU(16, stateful=True)(keras.Input((24, 3))),
    "A batch has another size": lambda: built(UntiedGRU(16, stateful=True), 32)(zeros(8, 24, 3)),
    "A sequence with a start ends too late": lambda: built(UntiedGRU(16))(zeros(8, 12, 3), start=20),
    "A start must be one known integer": lambda: built(UntiedGRU(16))(zeros(8, 12, 3), start=np.arange(8)),
    "Starts have an axis too many": lambda: UntiedGRU(16, sharing=Periodic(24))(
        zeros(8, 12, 3), start=np.zeros((8, 1), int)
    ),
    "Starts are floats": lambda: UntiedGRU(16, sharing=Periodic(24))(zeros(8, 12, 3), start=zeros(8)),
    "The number of timesteps is given by position": lambda: UntiedGRU(16, 24),
    "A size is no positive integer": lambda: UntiedGRU(128 / 2),
    "cuDNN is asked for": lambda: UntiedGRU(16, use_cudnn=True),
    "A sharing is not known": lambda: UntiedGRU(16, sharing="blocks"),
    "A sharing names no weight of the cell": lambda: built(
        UntiedRNN(keras.layers.GRUCell(16), sharing={"weight": "tied"})
    ),
    "Frozen timesteps share weights with others": lambda: built(
        UntiedGRU(16, sharing=Blocks(6), frozen_timesteps=[0])
    ),
    "Smoothness of a Keras layer": lambda: (
        built(keras.layers.GRU(16, kernel_regularizer=TimeSmoothness(l2=0.1))).losses
    ),
    "A constraint on weights that are made of parameters": lambda: built(
        UntiedGRU(16, sharing=LowRank(1), kernel_constraint="max_norm")
    ),
    "The cell is built": lambda: UntiedRNN(built_cell()),
    "The cell cannot be copied": untie_a_cell_without_configuration,
    "The cell changes a variable": lambda: UntiedRNN(Normalized())(zeros(8, 24, 3), training=True),
    "The layer has no weights yet": lambda: UntiedGRU(16).weights_at(0),
    "The new sharing has no room for the weights": lambda: built(UntiedGRU(16)).refine(sharing=Blocks(6)),
    "Keras does not know the layer": load_without_import,
    "Keras does not know the cell": load_a_cell_without_its_class,
    "A file of other weights": load_a_tied_file,
    "A file is damaged": load_a_damaged_file,
    "matplotlib is missing": import_plot_without_matplotlib,
}


def test_the_page_quotes_what_is_raised_here():
    assert list(QUOTED) == list(RAISES)
    assert len(QUOTED) == PAGE.read_text().count("```text")


@pytest.mark.parametrize("title", RAISES)
def test_message_is_raised(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = (ImportError, NotImplementedError, TypeError, ValueError)
    with pytest.raises(kinds, match=re.escape(QUOTED[title])):
        RAISES[title]()
