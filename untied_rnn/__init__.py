"""Keras layers with separate weights for every timestep."""

from importlib.metadata import version

from untied_rnn.cell_rnn import UntiedRNN
from untied_rnn.dense import UntiedDense
from untied_rnn.gru import UntiedGRU
from untied_rnn.lstm import UntiedLSTM
from untied_rnn.optimizers import PerTimestep
from untied_rnn.regularizers import TimeSmoothness
from untied_rnn.simple_rnn import UntiedSimpleRNN

__all__ = [
    "PerTimestep",
    "TimeSmoothness",
    "UntiedDense",
    "UntiedGRU",
    "UntiedLSTM",
    "UntiedRNN",
    "UntiedSimpleRNN",
]
__version__ = version("untied-rnn")
