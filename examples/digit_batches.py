"""Shuffled batches of digits for any number of steps, distorted at random if asked for (TensorFlow)."""

import numpy as np
import tensorflow as tf

BATCH_SIZE = 128
SHIFT, STRETCH = 2.0, 0.15  # of distortions, in pixels and as a share


def warp(images: tf.Tensor, matrices: tf.Tensor, shifts: tf.Tensor) -> tf.Tensor:
    """The pixel at `p`, as (x, y) from the centre, becomes the one at `matrix p + shift`; bilinear."""
    offsets = 13.5 + shifts - tf.linalg.matvec(matrices, [13.5, 13.5])  # for `p` from the corner
    affine = tf.reshape(tf.concat([matrices, offsets[..., None]], axis=-1), (-1, 6))
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images[..., None],
        transforms=tf.pad(affine, [(0, 0), (0, 2)]),  # without perspective
        output_shape=(28, 28),
        fill_value=0.0,
        interpolation="BILINEAR",
    )[..., 0]


def distorted(images: tf.Tensor, seed: int, step: tf.Tensor) -> tf.Tensor:
    """Each image turned, scaled, sheared and shifted a little, as a function of `seed` and `step` alone."""
    uniform = tf.random.stateless_uniform((tf.shape(images)[0], 2, 3), (seed, step), minval=-1)
    return warp(images, tf.eye(2) + STRETCH * uniform[..., :2], SHIFT * uniform[..., 2])


def batches(
    x: np.ndarray, y: np.ndarray, seed: int, first_step: int, distort: bool = False
) -> tf.data.Dataset:
    """An endless stream of batches, each a function of `seed` and its step alone.

    So an interrupted run can resume at any step, with the digits of an undisturbed run.
    """
    first_pass, offset = divmod(first_step * BATCH_SIZE, len(x))

    def shuffled(index: tf.Tensor) -> tf.Tensor:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), (seed, index))
        return order[tf.where(index == first_pass, offset, 0) :]

    def gathered(step: tf.Tensor, i: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        digits = tf.gather(images, i)
        return distorted(digits, seed, step) if distort else digits, tf.gather(labels, i)

    # On the CPU whatever the backend: the pipeline only gathers and distorts rows.
    with tf.device("CPU"):
        images, labels = tf.constant(x), tf.constant(y)
        indices = tf.data.Dataset.range(first_pass, tf.int64.max).map(shuffled).rebatch(BATCH_SIZE)
        return indices.enumerate(first_step).map(gathered).prefetch(16)
