"""Recurrent Keras layers with separate weights for every timestep."""

from importlib.metadata import version

from untied_rnn.simple_rnn import UntiedSimpleRNN

__all__ = ["UntiedSimpleRNN"]
__version__ = version("untied-rnn")
