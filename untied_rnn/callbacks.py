"""Callbacks: training that resumes after a kill."""

import contextlib
import json
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import keras


class IntactBackup(keras.callbacks.BackupAndRestore):
    """`keras.callbacks.BackupAndRestore` that can resume after a kill at any moment.

    Keras overwrites its two files in place, and cannot restore files that a kill has torn. Here they are
    zipped when they are whole, and the archive replaces the last one:

    ```
    after each epoch:     weights, optimizer, epochs -> {archive}_unfinished -> archive
    when `fit` begins:    archive -> weights and optimizer; its epochs are not run again
    ```

    The archive outlives `fit`, so that a kill before the model is saved loses nothing either. Delete it when
    the model is saved, or the next `fit` resumes from it.

    The weights end bit-equal to an undisturbed run's if each epoch's data is a function of its number. Keras
    does not store the random seeds of dropout, so that with dropout they do not.

    Args:
        archive: Path of the backup, a zip file.

    Raises:
        ValueError: When `fit` begins, if the model is not built, or the archive is damaged or of another
            model.

    Example:

    ```python
    import keras
    import numpy as np
    from untied_rnn import UntiedSimpleRNN
    from untied_rnn.callbacks import IntactBackup

    inputs = keras.Input((12, 3))
    model = keras.Sequential([inputs, UntiedSimpleRNN(8), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    backup = IntactBackup("backup.zip")
    model.fit(np.ones((4, 12, 3)), np.ones((4, 1)), epochs=3, callbacks=[backup], verbose=0)
    model.save("model.keras")
    backup.archive.unlink()
    ```
    """

    archive: pathlib.Path

    def __init__(self, archive: str | os.PathLike[str]):
        super().__init__(f"{os.fspath(archive)}_unfinished")
        self.archive = pathlib.Path(archive)

    @property
    def initial_epoch(self) -> int:
        """The number of epochs that the archive holds, 0 without one: where data and logs have to go on."""
        if not self.archive.exists():
            return 0
        with self._opened() as archive:
            return json.loads(archive.read(os.path.basename(self._training_metadata_path)))["epoch"]

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        shutil.rmtree(self.backup_dir, ignore_errors=True)  # what a kill has left
        if self.initial_epoch:
            with self._opened() as archive:
                archive.extractall(self.backup_dir)
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_end(epoch, logs)
        os.replace(shutil.make_archive(self.backup_dir, "zip", self.backup_dir), self.archive)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self.archive) as archive:
                yield archive
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise ValueError(
                "Expected an archive that `IntactBackup` has written; delete it to train from the start. "
                f"Received: {self.archive} ({error})"
            ) from error
