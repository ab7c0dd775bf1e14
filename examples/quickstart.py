"""Reads handwritten digits row by row: 28 timesteps of 28 pixels, each timestep with its own weights."""

import keras
import matplotlib.pyplot as plt
from command_line import verbosity
from digits import load_digits

from untied_rnn import UntiedSimpleRNN, plot

keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((28, 28)), UntiedSimpleRNN(50), keras.layers.Dense(10)])
model.summary()

loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])

x_train, y_train, x_test, y_test = load_digits("sample")  # 4,000 to train on and 1,000 others
model.fit(x_train, y_train, epochs=15, validation_data=(x_test, y_test), verbose=verbosity())

_, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"test accuracy {accuracy:.4f} ({len(x_test)} digits)")

# How large the weights of each timestep have become: a line for each kind of weight.
plot.weight_norms(model.layers[0])
plt.savefig("quickstart.png")
