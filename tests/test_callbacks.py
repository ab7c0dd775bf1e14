"""`IntactBackup`: resumes after the last whole epoch, and reads only its own whole archives.

Kills at any moment are in `test_faults.py`.
"""

import inspect

import keras
import numpy as np
import pytest

from untied_rnn import UntiedSimpleRNN
from untied_rnn.callbacks import IntactBackup

X, Y = np.random.default_rng(0).normal(size=(2, 8, 3, 2))


def model(units=3):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3, 2)), UntiedSimpleRNN(units), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile("adam", "mse", run_eagerly=True)
    return model


def fit(model, epochs, *callbacks):
    """Trains; returns the epochs that were run."""
    x, y = X, Y[:, 0]
    return model.fit(x, y, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0).epoch


class End(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_an_interrupted_fit_goes_on_to_the_same_weights(tmp_path):
    whole = model()
    fit(whole, 4)
    backup = IntactBackup(tmp_path / "backup.zip")
    assert backup.initial_epoch == 0
    with pytest.raises(KeyboardInterrupt):
        fit(model(), 4, backup, End())
    resumed, backup = model(), IntactBackup(str(tmp_path / "backup.zip"))
    assert backup.initial_epoch == 2
    assert fit(resumed, 4, backup) == [2, 3]
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [path.name for path in tmp_path.iterdir()] == ["backup.zip"]
    assert fit(resumed, 4, backup) == []  # all that was asked for has been run


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The backup of one epoch."""
    archive = tmp_path_factory.mktemp("written") / "backup.zip"
    fit(model(), 1, IntactBackup(archive))
    return archive.read_bytes()


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "foreign"])
def test_a_damaged_archive_is_an_error(written, tmp_path, damage):
    archive, content = tmp_path / "backup.zip", bytearray(written)
    content[len(content) // 2] ^= 1
    archive.write_bytes({"cut short": content[:-100], "a bit flipped": content, "foreign": b"text"}[damage])
    before = archive.read_bytes()
    with pytest.raises(ValueError, match=r"`IntactBackup` has written; delete it.*backup\.zip"):
        fit(model(), 2, IntactBackup(archive))
    assert archive.read_bytes() == before


def test_another_models_archive_is_an_error(written, tmp_path):
    (tmp_path / "backup.zip").write_bytes(written)
    with pytest.raises(ValueError, match="shape"):
        fit(model(units=4), 2, IntactBackup(tmp_path / "backup.zip"))


def test_the_docstrings_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(inspect.getdoc(IntactBackup).split("```python\n")[1].split("```")[0], {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
