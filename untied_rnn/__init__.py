"""Keras layers with separate weights for every timestep."""

from importlib.metadata import version as _version

from untied_rnn._layers.dense import UntiedDense
from untied_rnn._layers.gru import UntiedGRU
from untied_rnn._layers.lstm import UntiedLSTM
from untied_rnn._layers.rnn import UntiedRNN
from untied_rnn._layers.simple_rnn import UntiedSimpleRNN
from untied_rnn.optimizers import PerTimestep
from untied_rnn.regularizers import TimeSmoothness

__all__ = [
    "PerTimestep",
    "TimeSmoothness",
    "UntiedDense",
    "UntiedGRU",
    "UntiedLSTM",
    "UntiedRNN",
    "UntiedSimpleRNN",
]
__version__ = _version("untied-rnn")
