"""The examples as a user runs them: as scripts, in a process of their own."""

import pathlib
import re
import runpy
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import BACKEND

from untied_rnn import UntiedSimpleRNN

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)


def run(script, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small file in Keras's layout: images whose bright row is the label."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 640), ("test", 200)):
        labels = rng.integers(0, 10, count)
        images = rng.integers(0, 40, (count, 28, 28)).astype("uint8")
        images[np.arange(count), 2 * labels + 4] += 200
        arrays |= {f"x_{part}": images, f"y_{part}": labels.astype("uint8")}
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, **arrays)
    return path


# Modules that need what the examples need: imported by the tests that are not skipped.


@pytest.fixture(scope="module")
def mnist_rows():
    import mnist_rows

    return mnist_rows


@pytest.fixture(scope="module")
def digit_batches():
    import digit_batches

    return digit_batches


def test_quickstart_prints_an_accuracy_and_draws(digits, tmp_path, monkeypatch, capsys):
    import digits as module

    loaded = []

    def load_digits(source):
        loaded.append(source)
        return load(str(digits))

    load = module.load_digits
    monkeypatch.setattr(module, "load_digits", load_digits)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "quickstart.py"))
    accuracy, count = re.search(r"test accuracy (\S+) \((\d+) digits\)", capsys.readouterr().out).groups()
    assert (loaded, count) == (["sample"], "200")
    assert float(accuracy) > 0.9
    assert (tmp_path / "quickstart.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "recipe",
    [
        "modern",
        pytest.param("notebook", marks=pytest.mark.release),
        pytest.param("best", marks=pytest.mark.release),
    ],
)
def test_mnist_rows_writes_what_it_says(digits, tmp_path, recipe):
    epochs = {"modern": 8, "notebook": 1, "best": 2}[recipe]
    units = 50 if recipe == "modern" else 16  # the other recipes only start
    options = ["--recipe", recipe, "--units", units, "--epochs", epochs, "--out", tmp_path]
    code, stdout, stderr = finish(run("mnist_rows.py", "--data", digits, *options))
    assert code == 0, stderr
    accuracy = float(stdout.split("test accuracy ")[1].split()[0])
    assert recipe != "modern" or accuracy > 0.9
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(model.layers[1], UntiedSimpleRNN)
    with np.load(digits) as arrays:
        logits = model.predict(arrays["x_test"].astype("float32") / 255, verbose=0)
        assert (logits.argmax(axis=-1) == arrays["y_test"]).mean() == pytest.approx(accuracy, abs=1e-4)
        loss = keras.losses.sparse_categorical_crossentropy(arrays["y_test"], logits, from_logits=True)
    log = np.atleast_1d(np.genfromtxt(tmp_path / "metrics.csv", delimiter=",", names=True))
    assert log.size == epochs
    assert log["val_accuracy"][-1] == pytest.approx(accuracy, abs=1e-4)
    assert log["val_loss"][-1] == pytest.approx(np.mean(loss), rel=1e-3)  # of the digits as they are
    assert (tmp_path / "learning_curve.png").stat().st_size > 5000


@pytest.mark.parametrize("recipe", ["modern", "notebook", "best"])
def test_quick_shortens_a_recipe(digits, tmp_path, mnist_rows, recipe, monkeypatch):
    fitted = {}
    monkeypatch.setattr(keras.Model, "fit", lambda self, *_, **options: fitted.update(options))
    monkeypatch.setattr(keras.Model, "evaluate", lambda *_, **__: (0.0, 0.0))
    monkeypatch.setattr("robust_run.draw", lambda metrics, overlay, steps, path: path.touch())
    for arguments, expected in (
        (["--quick"], mnist_rows.RECIPES[recipe].quick_epochs),
        ([], mnist_rows.RECIPES[recipe].epochs),
        (["--quick", "--epochs", "3"], 3),
    ):
        command = [
            "",
            "--recipe",
            recipe,
            "--units",
            "2",
            "--data",
            str(digits),
            "--out",
            str(tmp_path),
            *arguments,
        ]
        monkeypatch.setattr(sys, "argv", command)
        mnist_rows.main()
        assert fitted["epochs"] == expected


def warped(digit_batches, images, matrix, shift):
    matrices, shifts = (np.array([part] * len(images), "float32") for part in (matrix, shift))
    return digit_batches.warp(keras.ops.convert_to_tensor(images), matrices, shifts).numpy()


def test_warp_of_whole_pixels_is_exact(digit_batches):
    images = np.random.default_rng(0).random((3, 28, 28)).astype("float32")
    identity, quarter_turn = np.eye(2), [[0, -1], [1, 0]]
    np.testing.assert_array_equal(warped(digit_batches, images, identity, [0, 0]), images)
    shifted = np.zeros_like(images)  # each pixel is the one to the right by 1 and above by 2
    shifted[:, 2:, :-1] = images[:, :-2, 1:]
    np.testing.assert_array_equal(warped(digit_batches, images, identity, [1, -2]), shifted)
    turned = np.rot90(images, axes=(1, 2))
    np.testing.assert_array_equal(warped(digit_batches, images, quarter_turn, [0, 0]), turned)
    between = warped(digit_batches, images, identity, [0.25, 0])[:, :, :-1]
    np.testing.assert_allclose(between, 0.75 * images[:, :, :-1] + 0.25 * images[:, :, 1:], atol=1e-6)


def test_distortions_are_small_and_differ(digit_batches):
    dot = np.zeros((500, 28, 28), "float32")
    dot[:, 13:15, 13:15] = 0.25
    moved = digit_batches.distorted(dot, 0, 7).numpy()
    position = np.arange(28) - 13.5
    centres = np.stack([(moved.sum(axis) @ position) / moved.sum((1, 2)) for axis in (1, 2)])
    assert len(np.unique(centres)) > 900
    assert 1.5 < np.abs(centres).max() < digit_batches.SHIFT / (1 - 2 * digit_batches.STRETCH)
    assert np.abs(centres.mean(axis=1)).max() < 0.2


@pytest.mark.parametrize("distort", [False, True])
def test_batches_are_functions_of_seed_and_step(digit_batches, distort):
    x = np.random.default_rng(0).random((300, 28, 28)).astype("float32")
    y = np.arange(300, dtype="int32")

    def take(count, seed=0, first_step=0):
        stream = digit_batches.batches(x, y, seed, first_step, distort).take(count)
        return [(images.numpy(), labels.numpy()) for images, labels in stream]

    whole = take(6)
    np.testing.assert_array_equal(np.sort(np.concatenate([labels for _, labels in whole])[:300]), y)
    for first_step in (1, 4):  # in the first and in the second pass
        for resumed, batch in zip(take(2, first_step=first_step), whole[first_step:], strict=False):
            np.testing.assert_array_equal(resumed[0], batch[0])
            np.testing.assert_array_equal(resumed[1], batch[1])
    assert not np.array_equal(take(1, seed=1)[0][1], whole[0][1])
    for images, labels in whole:
        assert np.array_equal(images, x[labels]) != distort
    first, second = (digit_batches.distorted(x[:1], 0, step).numpy() for step in (0, 1))
    assert not np.array_equal(first, second)  # a digit is seen in another form in each pass


def test_notebook_recipe_is_the_notebook(digits, mnist_rows):
    """Shapes, no biases in the recurrence, N(0, 1) everywhere, and outputs that stay untrained."""
    model = mnist_rows.notebook_recipe(50, 130, 1000)
    assert [(w.name, tuple(w.shape)) for w in model.weights] == [
        ("kernel", (28, 28, 50)),
        ("recurrent_kernel", (28, 50, 50)),
        ("output_kernel", (28, 50, 10)),
        ("kernel", (50, 10)),
        ("bias", (10,)),
    ]
    for weight in model.weights[:3]:
        assert np.std(keras.ops.convert_to_numpy(weight)) == pytest.approx(1, abs=0.02)
    before = model.get_weights()
    with np.load(digits) as arrays:
        model.fit(arrays["x_train"] / 255.0, arrays["y_train"], verbose=0)
    moved = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert moved == [w.name != "output_kernel" for w in model.weights]
    settings = model.optimizer.get_config()
    assert (settings["learning_rate"], settings["rho"], settings["epsilon"]) == (
        pytest.approx(0.001),
        0.9,
        1e-10,
    )


def broken(tmp_path, kind, digits):
    path = tmp_path / f"{kind}.npz"
    with np.load(digits) as arrays:
        arrays = dict(arrays)
    if kind == "truncated":
        path.write_bytes(digits.read_bytes()[:-1000])
    elif kind == "text":
        path.write_text("no digits")
    elif kind != "missing":
        arrays |= {
            "pickled": {"y_test": np.array([{}] * 200, dtype=object)},
            "float": {"x_train": arrays["x_train"] / 255},
            "flat": {"x_train": arrays["x_train"].reshape(640, 784)},
            "short": {"y_train": arrays["y_train"][:-1]},
            "labels": {"y_test": arrays["y_test"] + 10},
        }.get(kind, {})
        if kind == "keys":
            del arrays["y_train"]
        np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "text", "truncated", "pickled", "keys", "float", "flat", "short", "labels"]
)
def test_foreign_digits_are_a_one_line_error(digits, tmp_path, kind):
    from digits import load_digits

    path = broken(tmp_path, kind, digits)
    with pytest.raises(SystemExit) as raised:
        load_digits(str(path))
    message = str(raised.value.code)
    assert message.startswith("error: ")
    assert path.name in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "/dev/null/out"], "cannot use --out"),
        (["--overlay", "no such file"], "cannot read --overlay"),
        (["--epochs", "0"], "positive integer"),
        (["--units", "-5"], "positive integer"),
        (["--data", "no such file.npz"], "is not a digits file"),
    ],
)
def test_wrong_arguments_end_before_training(
    digits, tmp_path, mnist_rows, arguments, message, monkeypatch, capsys
):
    given = ["--data", digits, "--out", tmp_path, *arguments]  # the last of two counts
    monkeypatch.setattr(sys, "argv", ["mnist_rows.py", *map(str, given)])
    with pytest.raises(SystemExit) as raised:
        mnist_rows.main()
    printed = capsys.readouterr()
    assert message in f"{printed.err}\n{raised.value.code}"
    assert "\n" not in str(raised.value.code)
    assert "Epoch" not in printed.out


def test_resume_refuses_another_run(digits, tmp_path, mnist_rows, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def main(*arguments):
        given = ["--data", digits, "--out", tmp_path, *arguments]
        monkeypatch.setattr(sys, "argv", ["mnist_rows.py", *map(str, given)])
        mnist_rows.main()

    monkeypatch.setattr(keras.Model, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main("--epochs", 1)
    (tmp_path / "checkpoint.keras").touch()
    with pytest.raises(SystemExit, match=r"error: cannot resume.*'epochs': 1.*'epochs': 2"):
        main("--epochs", 2, "--resume")
    assert (tmp_path / "checkpoint.keras").exists()


@pytest.mark.parametrize("ignored", [False, True])
def test_interrupt_within_a_destructor_ends_the_process(ignored):
    # There Python ignores all exceptions, a `KeyboardInterrupt` as well.
    script = f"""
import signal
if {ignored}:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
from command_line import end_on_interrupt

class Interrupted:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

end_on_interrupt("go on")
Interrupted()
print("not ended")
"""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.run([sys.executable, "-c", script], cwd=EXAMPLES, capture_output=True, text=True)
    signal.signal(signal.SIGINT, handler)
    expected = (0, "not ended\n", "") if ignored else (130, "", "go on\n")
    assert (process.returncode, process.stdout, process.stderr) == expected
