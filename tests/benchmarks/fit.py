"""`fit` of the notebook's recipe, through the example, against the notebook's own loop.

    python tests/benchmarks/fit.py [--data FILE.npz] [--steps 1000] [--rounds 7] [--smoke]

The notebook's side is its program in `tf.compat.v1`: 84 variables written out, a batch through
`feed_dict` at every step, `sess.run`. Ours is `model.fit` on the example's model and data pipeline, progress
bar and all. Same digits, same batch size, and both print a loss and an accuracy of what they have trained
on. Each side has a process of its own and they take turns. Prints the milliseconds of a step and the ratio.
"""

import argparse
import contextlib
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
BATCH_SIZE, ROWS, UNITS, CLASSES = 128, 28, 50, 10


def ours(x: np.ndarray, y: np.ndarray, steps: int) -> Callable[[], None]:
    from digit_batches import batches
    from mnist_rows import notebook_recipe

    model = notebook_recipe(UNITS, epochs=1, steps=steps)
    data = batches(x, y, seed=0, first_step=0)

    def train() -> None:
        model.fit(data, epochs=1, steps_per_epoch=steps, shuffle=False)

    return train


def notebook(x: np.ndarray, y: np.ndarray, steps: int) -> Callable[[], None]:
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    rows = tf.placeholder(tf.float32, [None, ROWS, ROWS])
    labels = tf.placeholder(tf.float32, [None, CLASSES])

    def normal(*shape: int) -> tf.Variable:
        return tf.Variable(tf.random_normal(shape))

    w, u, v = (
        [normal(*shape) for _ in range(ROWS)] for shape in ((ROWS, UNITS), (UNITS, UNITS), (UNITS, CLASSES))
    )
    h = tf.zeros([tf.shape(rows)[0], UNITS])
    for t, row in enumerate(tf.unstack(rows, axis=1)):
        h = tf.tanh(tf.matmul(h, u[t]) + tf.matmul(row, w[t]))
        tf.matmul(h, v[t])  # the outputs, which no loss sees
    logits = tf.matmul(h, normal(UNITS, CLASSES)) + normal(CLASSES)
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    update = tf.train.RMSPropOptimizer(0.001).minimize(loss)
    correct = tf.equal(tf.argmax(logits, 1), tf.argmax(labels, 1))
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    one_hot = np.eye(CLASSES, dtype="float32")[y]
    rng = np.random.default_rng(0)
    order = np.arange(0)

    def train() -> None:
        nonlocal order
        for _ in range(steps):
            if len(order) < BATCH_SIZE:
                order = rng.permutation(len(x))
            batch, order = order[:BATCH_SIZE], order[BATCH_SIZE:]
            feed = {rows: x[batch], labels: one_hot[batch]}
            session.run(update, feed)
        print(session.run([loss, accuracy], feed))

    return train


def serve(pipe: Connection, make: Callable, data: str, steps: int) -> None:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    sys.path.insert(0, str(EXAMPLES))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        from digits import load_digits

        x, y, *_ = load_digits(data)
        train = make(x[:55_000], y[:55_000], steps)
        train()  # traces and compiles
        with contextlib.suppress(EOFError):  # the other end has all that it asked for
            while True:
                pipe.recv()
                start = time.perf_counter()
                train()
                pipe.send((time.perf_counter() - start) / steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="as in examples/mnist_rows.py")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    args = parser.parse_args()
    steps, rounds = (3, 1) if args.smoke else (args.steps, args.rounds)

    context = multiprocessing.get_context("spawn")
    pipes = []
    for make in (ours, notebook):
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, make, args.data, steps), daemon=True).start()
        there.close()
        pipes.append(here)

    def seconds(pipe: Connection) -> float:
        pipe.send("train")
        return pipe.recv()

    for pipe in pipes:  # one after the other: the second is not timed while the first still compiles
        seconds(pipe)
    times = np.array([[seconds(pipe) for pipe in pipes] for _ in range(rounds)])
    fit, loop = 1e3 * np.median(times, axis=0)
    print(f"{rounds} rounds of {steps} steps each, medians")
    print("| fit, ms a step | notebook's loop, ms a step | ratio |\n| --- | --- | --- |")
    print(f"| {fit:.2f} | {loop:.2f} | {np.median(times[:, 0] / times[:, 1]):.2f} |")


if __name__ == "__main__":
    main()
