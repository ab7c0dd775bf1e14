"""This library: a layer."""

import keras

from untied_rnn import UntiedLSTM


def build(timesteps: int, inputs: int, units: int):
    return keras.Sequential([keras.Input((timesteps, inputs)), UntiedLSTM(units)])
