"""Keras's own tests of its recurrent layers, with this library's classes in their place.

Their numbers come from constant initializers: one weight set for each timestep must give them as well.
"""

import importlib
import re
from types import SimpleNamespace

import keras
import pytest

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN

# Private, but these are the tests that Keras's own layers pass. From 3.15.1 they ship in Keras's wheel.
PACKAGE = "keras.src.layers.rnn"
pytest.importorskip(f"{PACKAGE}.rnn_test", reason="This version of Keras comes without its tests")

UNTIED = {"SimpleRNN": UntiedSimpleRNN, "LSTM": UntiedLSTM, "GRU": UntiedGRU, "RNN": UntiedRNN}
LAYERS = SimpleNamespace(**{**vars(keras.layers), **UNTIED})

CUDNN = "cuDNN has one weight set for all timesteps"
# Tests that untied layers must not pass, and why.
EXCEPTIONS = {
    ("gru_test", "test_torch_cudnn_dispatch_fires"): CUDNN,
    ("bidirectional_test", "test_keeps_use_cudnn"): f"`use_cudnn=True` is refused: {CUDNN}",
    ("bidirectional_test", "test_fused_lstm_eligibility"): CUDNN,
    ("bidirectional_test", "test_fused_gru_eligibility"): CUDNN,
    ("bidirectional_test", "test_torch_cudnn_bidirectional_gru_dispatch_fires"): CUDNN,
    ("dropout_rnn_cell_test", "test_seed_tracking"): (
        "Random numbers come from a copy of the cell, made when the layer is built; before, it has none"
    ),
}
# What takes seconds: layers called and trained in every form, which `test_layer_check` of each does as well.
SLOW = {
    "simple_rnn_test": "test_basics",
    "lstm_test": "test_basics",
    "gru_test": "test_basics",
    "rnn_test": "test_basics",
    "bidirectional_test": "test_(basics|output_shape|fused_.*)",
    "stacked_rnn_cells_test": "test_(basics|return_state_stacked_lstm_cell)",
    "dropout_rnn_cell_test": "test_basics",
}


def untied(module_name, class_name):
    """A test class of Keras, which finds the untied layers where it looks for Keras's."""
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    assert hasattr(module, "layers"), f"{module_name} takes its layers from elsewhere"
    module.layers = LAYERS
    tests = getattr(module, class_name)
    for (where, name), reason in EXCEPTIONS.items():
        if where == module_name and hasattr(tests, name):
            pytest.mark.xfail(reason=reason, strict=True)(getattr(tests, name))
    for name in filter(re.compile(SLOW[module_name]).fullmatch, dir(tests)):
        pytest.mark.release(getattr(tests, name))
    return tests


SimpleRNNTest = untied("simple_rnn_test", "SimpleRNNTest")
LSTMTest = untied("lstm_test", "LSTMTest")
GRUTest = untied("gru_test", "GRUTest")
RNNTest = untied("rnn_test", "RNNTest")
BidirectionalTest = untied("bidirectional_test", "SimpleRNNTest")
StackedRNNTest = untied("stacked_rnn_cells_test", "StackedRNNTest")
DropoutRNNCellTest = untied("dropout_rnn_cell_test", "DropoutRNNCellTest")


@pytest.fixture(autouse=True)
def _traceback_filtering():
    yield
    keras.config.enable_traceback_filtering()  # which Keras's tests turn off


@pytest.mark.parametrize(("module_name", "name"), EXCEPTIONS)
def test_every_exception_is_a_test_of_keras(module_name, name):
    module = importlib.import_module(f"{PACKAGE}.{module_name}")
    assert any(isinstance(found, type) and hasattr(found, name) for found in vars(module).values())
