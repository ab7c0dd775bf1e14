"""Trains an untied RNN to read MNIST digits row by row: 28 timesteps of 28 pixels.

    python examples/mnist_rows.py                           # 5,000 real digits, no network
    python examples/mnist_rows.py --data mnist              # all 70,000
    python examples/mnist_rows.py --recipe seed --data mnist
    python examples/mnist_rows.py --recipe best --data mnist    # two wider layers, distorted digits
    python examples/mnist_rows.py --quick                   # few epochs, also of the others

Writes metrics.csv, learning_curve.png and model.keras to `--out`.
"""

import argparse
import functools
import json
import pathlib
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from command_line import end_on_interrupt, fail, positive, replace, start
from digits import load_digits
from matplotlib.figure import Figure

from untied_rnn import UntiedSimpleRNN

BATCH_SIZE = 128
SHIFT, STRETCH = 2.0, 0.15  # distortions of `--recipe best`, in pixels and as a share


class Recipe(NamedTuple):
    build: Callable[[int, int, int], keras.Model]  # of units, epochs and steps per epoch
    units: int
    epochs: int
    quick_epochs: int
    distort: bool = False


def modern_recipe(
    units: int, epochs: int, steps_per_epoch: int, layers: int = 1, rate: float = 2e-3
) -> keras.Model:
    """Glorot and orthogonal matrices, Adam with a cosine schedule."""
    rows = states = keras.Input((28, 28))
    for i in range(layers):  # all but the last hand on the states of all timesteps
        states = UntiedSimpleRNN(units, return_sequences=i < layers - 1)(states)
    model = keras.Model(rows, keras.layers.Dense(10)(states))
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps_per_epoch)
    return compiled(model, keras.optimizers.Adam(schedule, clipnorm=1.0), steps_per_epoch)


def seed_recipe(units: int, epochs: int, steps_per_epoch: int) -> keras.Model:
    """The TensorFlow 1 notebook: all weights from N(0, 1), outputs V_t computed but untrained."""
    normal = functools.partial(keras.initializers.RandomNormal, stddev=1.0)
    initializers = {f"{part}_initializer": normal() for part in ("kernel", "recurrent", "output")}
    rows = keras.Input((28, 28))
    layer = UntiedSimpleRNN(units, output_units=10, use_bias=False, return_state=True, **initializers)
    _, state = layer(rows)
    warnings.filterwarnings("ignore", "Gradients do not exist for variables")  # the outputs' weights
    logits = keras.layers.Dense(10, kernel_initializer=normal(), bias_initializer=normal())(state)
    model = keras.Model(rows, logits)
    optimizer = keras.optimizers.RMSprop(0.001, rho=0.9, epsilon=1e-10)
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables:
        if "velocity" in variable.path:  # TensorFlow 1 starts the mean square at one, Keras at zero
            variable.assign(keras.ops.ones_like(variable))
    return compiled(model, optimizer, steps_per_epoch)


best_recipe = functools.partial(modern_recipe, layers=2, rate=1e-3)
RECIPES = {
    "modern": Recipe(modern_recipe, units=50, epochs=30, quick_epochs=10),
    "seed": Recipe(seed_recipe, units=50, epochs=130, quick_epochs=5),
    "best": Recipe(best_recipe, units=128, epochs=40, quick_epochs=10, distort=True),
}


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer, steps_per_epoch: int) -> keras.Model:
    if not optimizer.built:  # now rather than in the first step, so that a trial save is a full one
        optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A step this small takes no longer than a turn through Python, so as many as divide an epoch run at once.
    steps_at_once = max(n for n in range(1, 51) if steps_per_epoch % n == 0)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps_at_once)
    return model


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

    So an interrupted run can go on at any step with the digits that it would have seen.
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


def check_disk(model: keras.Model, folder: pathlib.Path) -> None:
    """Saves a trial, so that a full disk is an error now and not after an epoch."""
    trial = folder / "unfinished_checkpoint.keras"
    try:
        model.save(trial)
        # Beside a checkpoint, the next one or the final model for a moment; as much again for the rest.
        needed, free = 2 * trial.stat().st_size, shutil.disk_usage(folder).free
    finally:
        trial.unlink(missing_ok=True)
    if free < needed:
        raise OSError(f"expected {needed:,} free bytes, received {free:,}")


def read_csv(path: pathlib.Path) -> np.ndarray:
    return np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True))


def draw(metrics: pathlib.Path, overlay: np.ndarray | None, steps_per_epoch: int, path: pathlib.Path) -> None:
    log = read_csv(metrics)
    steps = (log["epoch"] + 1) * steps_per_epoch
    figure = Figure(figsize=(10, 4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for prefix, label in (("", "training"), ("val_", "test")):
        loss.semilogy(steps, log[f"{prefix}loss"], label=label)
        accuracy.plot(steps, log[f"{prefix}accuracy"], label=label)
    if overlay is not None:
        loss.semilogy(overlay["step"], overlay["loss"], "k.", label="overlay")
        accuracy.plot(overlay["step"], overlay["batch_accuracy"], "k.", label="overlay")
    loss.set(xlabel="training step", ylabel="cross-entropy")
    accuracy.set(xlabel="training step", ylabel="accuracy")
    accuracy.legend()
    figure.savefig(path, dpi=120)


def trim(metrics: pathlib.Path, epochs: int) -> None:
    """Drops what was logged after the last checkpoint, a torn line too: those epochs are run again."""
    lines = metrics.read_bytes().splitlines(keepends=True)
    replace(metrics, lambda path: path.write_bytes(b"".join(lines[: 1 + epochs])))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--recipe", choices=list(RECIPES), default="modern")
    parser.add_argument("--units", type=positive, help="hidden units (default 50; --recipe best 128)")
    parser.add_argument("--epochs", type=positive, help="default 30; best 40; seed 130 of 1,000 steps each")
    parser.add_argument("--quick", action="store_true", help="few epochs: a look at it, not its accuracy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/mnist_rows"))
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    parser.add_argument("--overlay", type=pathlib.Path, help="CSV (step,loss,batch_accuracy) to draw as well")
    return parser.parse_args()


def main() -> None:
    start(train, parse())


def train(args: argparse.Namespace) -> None:
    recipe, seed_run = RECIPES[args.recipe], args.recipe == "seed"
    units = args.units or recipe.units
    epochs = args.epochs or (recipe.quick_epochs if args.quick else recipe.epochs)

    # All that can be wrong is found before training, and before anything of an older run is touched.
    x_train, y_train, x_test, y_test = load_digits(args.data)
    if seed_run and len(x_train) == 60_000:
        x_train, y_train = x_train[:55_000], y_train[:55_000]  # the notebook's training set
    steps_per_epoch = 1000 if seed_run else len(x_train) // BATCH_SIZE
    try:
        overlay = read_csv(args.overlay) if args.overlay else None
    except (OSError, ValueError) as error:
        fail(f"cannot read --overlay {args.overlay}", error)
    checkpoint, metrics, settings = (
        args.out / name for name in ("checkpoint.keras", "metrics.csv", "settings.json")
    )
    run = {key: getattr(args, key) for key in ("data", "recipe", "seed")} | {"units": units, "epochs": epochs}
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    resumed = args.resume and checkpoint.exists()
    if resumed:
        try:
            if (before := json.loads(settings.read_text())) != run:
                sys.exit(f"error: cannot resume {args.out}: it was started with {before}, received {run}")
            model = keras.saving.load_model(checkpoint)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            fail(f"cannot resume {args.out}", error)
    else:
        model = recipe.build(units, epochs, steps_per_epoch)
    check_disk(model, args.out)

    step = int(model.optimizer.iterations)
    if resumed:
        trim(metrics, step // steps_per_epoch)
    else:
        # The checkpoint first: with new settings beside it, an old one could be taken for this run's.
        checkpoint.unlink(missing_ok=True)
        replace(settings, lambda path: path.write_text(json.dumps(run)))
    model.summary()
    model.fit(
        batches(x_train, y_train, args.seed, first_step=step, distort=recipe.distort),
        initial_epoch=step // steps_per_epoch,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        validation_data=(x_test, y_test),
        shuffle=False,  # `batches` has shuffled
        validation_batch_size=1000,
        callbacks=[
            keras.callbacks.CSVLogger(metrics, append=resumed),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: replace(checkpoint, model.save)),
        ],
    )

    _, accuracy = model.evaluate(x_test, y_test, batch_size=1000, verbose=0)
    replace(args.out / "model.keras", model.save)
    replace(args.out / "learning_curve.png", lambda path: draw(metrics, overlay, steps_per_epoch, path))
    print(f"test accuracy {accuracy:.4f} ({len(x_test)} digits); results in {args.out}")


if __name__ == "__main__":
    end_on_interrupt("interrupted: go on with the same command and --resume")
    main()
