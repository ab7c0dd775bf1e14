"""Trains an untied RNN to read MNIST digits row by row: 28 timesteps of 28 pixels.

    python examples/mnist_rows.py                           # 5,000 real digits, no network
    python examples/mnist_rows.py --data mnist              # all 70,000
    python examples/mnist_rows.py --recipe seed --data mnist

Writes metrics.csv, learning_curve.png and model.keras to `--out`.
"""

import argparse
import json
import pathlib
import shutil
import sys
import warnings
import zipfile

import keras
import numpy as np
import tensorflow as tf
from command_line import end_on_interrupt, fail, positive, replace
from digits import load_digits
from matplotlib.figure import Figure

from untied_rnn import UntiedSimpleRNN

BATCH_SIZE = 128


def modern_recipe(units: int, epochs: int, steps_per_epoch: int) -> keras.Model:
    """Glorot and orthogonal matrices, Adam with a cosine schedule."""
    rows = keras.Input((28, 28))
    logits = keras.layers.Dense(10)(UntiedSimpleRNN(units)(rows))
    model = keras.Model(rows, logits)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * steps_per_epoch)
    return compiled(model, keras.optimizers.Adam(schedule, clipnorm=1.0), steps_per_epoch)


def seed_recipe(units: int, epochs: int, steps_per_epoch: int) -> keras.Model:
    """The TensorFlow 1 notebook: all weights from N(0, 1), outputs V_t computed but untrained."""

    def normal() -> keras.initializers.Initializer:
        return keras.initializers.RandomNormal(stddev=1.0)

    rows = keras.Input((28, 28))
    _, state = UntiedSimpleRNN(
        units,
        output_units=10,
        use_bias=False,
        kernel_initializer=normal(),
        recurrent_initializer=normal(),
        output_initializer=normal(),
        return_state=True,
    )(rows)
    warnings.filterwarnings("ignore", "Gradients do not exist for variables")  # those of the outputs
    logits = keras.layers.Dense(10, kernel_initializer=normal(), bias_initializer=normal())(state)
    model = keras.Model(rows, logits)
    optimizer = keras.optimizers.RMSprop(0.001, rho=0.9, epsilon=1e-10)
    optimizer.build(model.trainable_variables)
    for variable in optimizer.variables:
        if "velocity" in variable.path:  # TensorFlow 1 starts the mean square at one, Keras at zero
            variable.assign(keras.ops.ones_like(variable))
    return compiled(model, optimizer, steps_per_epoch)


def compiled(model: keras.Model, optimizer: keras.optimizers.Optimizer, steps_per_epoch: int) -> keras.Model:
    if not optimizer.built:  # now rather than in the first step, so that a trial save is a full one
        optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # A step this small takes no longer than a turn through Python, so as many as divide an epoch run at once.
    steps_at_once = max(n for n in range(1, 51) if steps_per_epoch % n == 0)
    model.compile(optimizer, loss, metrics=["accuracy"], steps_per_execution=steps_at_once)
    return model


def batches(x: np.ndarray, y: np.ndarray, seed: int, first_step: int) -> tf.data.Dataset:
    """An endless stream of batches, each a function of `seed` and its step alone.

    So an interrupted run can go on at any step with the digits that it would have seen.
    """
    first_pass, offset = divmod(first_step * BATCH_SIZE, len(x))

    def shuffled(index: tf.Tensor) -> tf.Tensor:
        order = tf.random.experimental.stateless_shuffle(tf.range(len(x)), (seed, index))
        return order[tf.where(index == first_pass, offset, 0) :]

    # On the CPU whatever the backend: the pipeline only gathers rows.
    with tf.device("CPU"):
        images, labels = tf.constant(x), tf.constant(y)
        indices = tf.data.Dataset.range(first_pass, tf.int64.max).map(shuffled).rebatch(BATCH_SIZE)
        return indices.map(lambda i: (tf.gather(images, i), tf.gather(labels, i))).prefetch(16)


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
    parser.add_argument("--recipe", choices=["modern", "seed"], default="modern")
    parser.add_argument("--units", type=positive, default=50, help="hidden units (default 50)")
    parser.add_argument(
        "--epochs", type=positive, help="default 30; with --recipe seed 130 of 1,000 steps each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/mnist_rows"))
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --out")
    parser.add_argument(
        "--overlay", type=pathlib.Path, help="CSV (step,loss,batch_accuracy) to draw into the learning curve"
    )
    return parser.parse_args()


def main() -> None:
    args = parse()
    try:
        train(args)
    except OSError as error:
        fail(f"cannot use --out {args.out}", error)


def train(args: argparse.Namespace) -> None:
    seed_run = args.recipe == "seed"
    epochs = args.epochs or (130 if seed_run else 30)

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
    run = {key: getattr(args, key) for key in ("data", "recipe", "units", "seed")} | {"epochs": epochs}
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
        build = seed_recipe if seed_run else modern_recipe
        model = build(args.units, epochs, steps_per_epoch)
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
        batches(x_train, y_train, args.seed, first_step=step),
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
