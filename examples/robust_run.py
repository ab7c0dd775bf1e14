"""Training that a kill, Ctrl-C or a full disk at any moment cannot spoil: the same run can resume.

After every epoch the whole model, optimizer included, is saved beside the last checkpoint, and then replaces
it. What would end the training later is an error before it starts.
"""

import json
import pathlib
import shutil
import sys
import zipfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from command_line import fail, replace, verbosity
from matplotlib.figure import Figure


def robust_run(
    build: Callable[[], keras.Model],
    batches: Callable[[int], tf.data.Dataset],
    test: tuple[np.ndarray, np.ndarray],
    epochs: int,
    steps_per_epoch: int,
    settings: dict[str, Any],
    out: pathlib.Path,
    resume: bool,
    overlay: pathlib.Path | None,
) -> None:
    """Trains a classifier, tests it, and writes metrics.csv, learning_curve.png and model.keras.

    Args:
        build: Returns the compiled model, with a built optimizer.
        batches: Returns the training batches from a step on, the same as in an undisturbed run.
        test: Inputs and labels to test on after each epoch.
        epochs: Number of epochs.
        steps_per_epoch: Number of batches in an epoch.
        settings: What the run is a function of. Only a run of the same settings is resumed.
        out: Folder of the results and the checkpoint.
        resume: Whether to resume from the checkpoint in `out`, if there is one.
        overlay: CSV file with the columns step, loss and batch_accuracy, drawn beside the learning curve.
    """
    try:
        other_log = read_csv(overlay) if overlay else None
    except (OSError, ValueError) as error:
        fail(f"cannot read --overlay {overlay}", error)
    checkpoint, metrics, started_with = (
        out / name for name in ("checkpoint.keras", "metrics.csv", "settings.json")
    )
    out.mkdir(parents=True, exist_ok=True)
    resumed = resume and checkpoint.exists()
    model = load(checkpoint, started_with, settings) if resumed else build()
    check_disk(model, out)

    # All is well, and only now is anything of an older run touched.
    step = int(model.optimizer.iterations)
    if resumed:
        trim(metrics, step // steps_per_epoch)
    else:
        # The checkpoint first: with new settings beside it, an old one could be taken for this run's.
        checkpoint.unlink(missing_ok=True)
        replace(started_with, lambda path: path.write_text(json.dumps(settings)))
    model.summary()
    model.fit(
        batches(step),
        initial_epoch=step // steps_per_epoch,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        validation_data=test,
        shuffle=False,  # `batches` has shuffled
        validation_batch_size=1000,
        verbose=verbosity(),
        callbacks=[
            keras.callbacks.CSVLogger(metrics, append=resumed),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: replace(checkpoint, model.save)),
        ],
    )

    _, accuracy = model.evaluate(*test, batch_size=1000, verbose=0)
    replace(out / "model.keras", model.save)
    replace(out / "learning_curve.png", lambda path: draw(metrics, other_log, steps_per_epoch, path))
    print(f"test accuracy {accuracy:.4f} ({len(test[1])} digits); results in {out}")


def load(checkpoint: pathlib.Path, started_with: pathlib.Path, settings: dict[str, Any]) -> keras.Model:
    try:
        if (before := json.loads(started_with.read_text())) != settings:
            sys.exit(
                f"error: cannot resume {checkpoint.parent}: it was started with {before}, received {settings}"
            )
        return keras.saving.load_model(checkpoint)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        fail(f"cannot resume {checkpoint.parent}", error)


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
