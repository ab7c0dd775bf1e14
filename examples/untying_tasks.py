"""The tasks of `should_you_untie.py`: digits by rows, digits that end early, and noise whose meaning changes.

rows     MNIST digits, 28 timesteps of 28 pixels
cut      the same, where training digits end after a random row, most early; missing rows are masked
noise    x_t of noise with the label argmax(sum_t x_t C_t): what to do differs along time
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from digit_batches import BATCH_SIZE, batches
from digits import load_digits
from untying_settings import CLASSES, FEATURES, PADDING, ROWS

LENGTHS = (8, 12, 16, 20, 24, 28)
HELD_OUT = 6  # one digit of six, and as many sequences of noise as there are test digits
Pair = tuple[np.ndarray, np.ndarray]


class Digits(NamedTuple):
    train: Pair
    held_out: Pair
    test: Pair


@functools.cache
def digits(source: str) -> Digits:
    x, y, x_test, y_test = load_digits(source)
    order = np.random.default_rng(0).permutation(len(x))
    train, held_out = np.split(order, [len(x) - len(x) // HELD_OUT])
    return Digits((x[train], y[train]), (x[held_out], y[held_out]), (x_test, y_test))


def cut(x: np.ndarray, lengths: np.ndarray | int) -> np.ndarray:
    after = np.arange(ROWS) >= np.reshape(lengths, (-1, 1))
    return np.where(after[..., None], np.float32(PADDING), x)


def mostly_short(count: int, rng: np.random.Generator) -> np.ndarray:
    """Lengths from 4: a fifth of what is left ends after each row. One of 200 digits is whole."""
    return np.minimum(ROWS, 3 + rng.geometric(0.2, count))


@functools.cache
def matrices() -> np.ndarray:
    """`C_t`."""
    return np.random.default_rng(0).standard_normal((ROWS, FEATURES, CLASSES)).astype("float32")


def noise(count: int, seed: tf.Tensor | tuple[int, int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Sequences, small, where tanh is close to linear; and their labels. A function of `seed`."""
    x = 0.1 * tf.random.stateless_normal((count, ROWS, FEATURES), seed)
    scores = tf.reshape(x, (count, -1)) @ tf.constant(matrices().reshape(-1, CLASSES))
    return x, tf.argmax(scores, axis=1, output_type="int32")


def training(task: str, source: str, count: int, seed: int) -> tf.data.Dataset:
    """An endless stream of batches: of `count` digits drawn by `seed`, or of new noise in each."""
    if task == "noise":
        return tf.data.Dataset.range(tf.int64.max).map(lambda step: noise(BATCH_SIZE, (seed, step)))
    x, y = digits(source).train
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x))[:count]
    x, y = x[chosen], y[chosen]
    return batches(cut(x, mostly_short(len(x), rng)) if task == "cut" else x, y, seed, first_step=0)


def testing(task: str, source: str) -> dict[tuple[str, int], Pair]:
    """What to evaluate on: the part, `"held out"` or `"test"`, and the length of its sequences."""
    parts = {"held out": digits(source).held_out, "test": digits(source).test}
    if task == "noise":
        # Seeds of training start at 0.
        return {(p, ROWS): _arrays(len(y), (-1 - i, 0)) for i, (p, (_, y)) in enumerate(parts.items())}
    lengths = LENGTHS if task == "cut" else (ROWS,)
    return {(part, n): (cut(x, n), y) for part, (x, y) in parts.items() for n in lengths}


def _arrays(count: int, seed: tuple[int, int]) -> Pair:
    x, y = noise(count, seed)
    return x.numpy(), y.numpy()
