"""What compilation costs and brings, on TensorFlow: first calls in T, and XLA outside of `fit`.

    python tests/benchmarks/compilation.py [--smoke]

A training call is forward, backward and the gradient of every weight, in a custom loop. Prints two
tables. Times are medians; ratios are taken pair by pair, the two sides in turn.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from untied_rnn import UntiedSimpleRNN

# Name: batch, timesteps, input_dim, units.
SHAPES = {"rows of digits": (128, 28, 28, 50), "wide": (128, 28, 28, 256), "long": (128, 784, 1, 128)}


def training_call(shape, jit_compile):
    """A function that runs one training call in eager mode, the layer compiling its own part."""
    batch, timesteps, input_dim, units = shape
    layer = UntiedSimpleRNN(units, jit_compile=jit_compile)
    layer.build((batch, timesteps, input_dim))
    x = tf.random.normal((batch, timesteps, input_dim))
    variables = [weight.value for weight in layer.trainable_weights]

    def call():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, variables)[-1].numpy()

    return call


def compiled_step(timesteps):
    """The same as one XLA program."""
    layer = UntiedSimpleRNN(128)
    layer.build((128, timesteps, 1))
    x = tf.random.normal((128, timesteps, 1))
    variables = [weight.value for weight in layer.trainable_weights]

    @tf.function(jit_compile=True)
    def call():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(loss, variables)

    return call


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def first_calls(repeats, lengths):
    print(f"First call (trace, compile, run) of a training step under XLA, 128 units, {repeats} rounds")
    seconds(compiled_step(lengths[0]))  # what the process pays once
    rounds = []
    for _ in range(repeats):
        row = []
        for timesteps in lengths:
            step = compiled_step(timesteps)
            first = seconds(step)
            row.append(first - seconds(step))  # without the run itself
        rounds.append(row)
    rounds = np.array(rounds)
    print("| T | seconds | over the first row |\n| --- | --- | --- |")
    for i, timesteps in enumerate(lengths):
        ratio = np.median(rounds[:, i] / rounds[:, 0])
        print(f"| {timesteps} | {np.median(rounds[:, i]):.2f} | {ratio:.2f} |")


def xla_outside_of_fit(repeats, shapes):
    print(f"\nTraining call in eager mode, jit_compile=True over False, {repeats} rounds")
    print("| shape | False, ms | True over False | compilation, s | calls that earn it back |")
    print("| --- | --- | --- | --- | --- |")
    for name, shape in shapes.items():
        plain, xla = training_call(shape, False), training_call(shape, True)
        cost = seconds(xla) - seconds(plain)
        times = np.array([(seconds(plain), seconds(xla)) for _ in range(repeats)])[1:]
        ratio = np.median(times[:, 1] / times[:, 0])
        gain = np.median(times[:, 0] - times[:, 1])
        calls = f"{cost / gain:.0f}" if gain > 0 else "never"
        print(f"| {name} {shape} | {1e3 * np.median(times[:, 0]):.2f} | {ratio:.2f} | {cost:.2f} | {calls} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="small shapes, to see that it runs")
    if parser.parse_args().smoke:
        first_calls(1, [2, 4])
        xla_outside_of_fit(3, {"small": (2, 3, 2, 4)})
    else:
        first_calls(5, [33, 784, 28])  # two loops, and the written-out form
        xla_outside_of_fit(41, SHAPES)


if __name__ == "__main__":
    main()
