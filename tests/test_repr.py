"""What `print(layer)` and the library's errors show of a layer."""

import keras
import pytest

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedRNN
from untied_rnn.sharing import Blocks, Listed, Periodic


@pytest.mark.parametrize(
    ("layer", "length", "before", "after"),
    [
        (UntiedLSTM(2, name="a"), 28, "LSTM name=a, units=2", "LSTM name=a, units=2, timesteps=28"),
        (
            UntiedGRU(2, timesteps=9, sharing=Blocks(4), frozen_timesteps=[8], name="a"),
            9,
            "GRU name=a, units=2, timesteps=9, sharing=Blocks(size=4), frozen_timesteps=[8]",
            "GRU name=a, units=2, timesteps=9, sharing=Blocks(size=4), weight_sets=3, frozen_timesteps=[8]",
        ),
        (
            UntiedGRU(2, sharing=Periodic(7), name="a"),
            None,
            "GRU name=a, units=2, sharing=Periodic(period=7)",
            "GRU name=a, units=2, sharing=Periodic(period=7), weight_sets=7",
        ),
        (
            UntiedRNN(keras.layers.GRUCell(2), sharing=Listed([0, 1] * 50), name="a"),
            100,
            "RNN name=a, timesteps=100, sharing=Listed(index=[0, 1, 0, 1, 0, 1, ...])",
            "RNN name=a, timesteps=100, sharing=Listed(index=[0, 1, 0, 1, 0, 1, ...]), weight_sets=2",
        ),
        (UntiedRNN(keras.layers.GRUCell(2), name="a"), 3, "RNN name=a", "RNN name=a, timesteps=3"),
    ],
    ids=["untied", "blocks, frozen", "period", "index", "cell"],
)
def test_repr_says_what_there_are_weights_for(layer, length, before, after):
    assert repr(layer) == str(layer) == f"<Untied{before}, built=False>"
    layer.build((None, length, 1))
    assert repr(layer) == f"<Untied{after}, built=True>"
