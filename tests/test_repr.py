"""What `print(layer)` and the library's errors show of a layer."""

import keras
import pytest

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN


@pytest.mark.parametrize(
    ("layer", "length", "before", "after"),
    [
        (UntiedLSTM(2, name="a"), 28, "LSTM name=a, units=2", "LSTM name=a, units=2, timesteps=28"),
        (
            UntiedGRU(2, timesteps=9, block_size=2, frozen_timesteps=[0, 1], name="a"),
            9,
            "GRU name=a, units=2, timesteps=9, block_size=2, frozen_timesteps=[0, 1]",
            "GRU name=a, units=2, timesteps=9, block_size=2, weight_sets=5, frozen_timesteps=[0, 1]",
        ),
        (
            UntiedGRU(2, period=7, name="a"),
            None,
            "GRU name=a, units=2, period=7",
            "GRU name=a, units=2, period=7",
        ),
        (
            UntiedDense(2, weight_index=[0, 1] * 50, name="a"),
            100,
            "Dense name=a, units=2, timesteps=100, weight_index=[0, 1, 0, 1, 0, 1, ...]",
            "Dense name=a, units=2, timesteps=100, weight_index=[0, 1, 0, 1, 0, 1, ...], weight_sets=2",
        ),
        (UntiedRNN(keras.layers.GRUCell(2), name="a"), 3, "RNN name=a", "RNN name=a, timesteps=3"),
    ],
    ids=["untied", "blocks, frozen", "period", "index", "cell"],
)
def test_repr_says_what_there_are_weights_for(layer, length, before, after):
    assert repr(layer) == str(layer) == f"<Untied{before}, built=False>"
    layer.build((None, length, 1))
    assert repr(layer) == f"<Untied{after}, built=True>"
