"""`examples/permuted_pixels.py`: its data, its layers, and the script."""

import argparse
import sys

import keras
import numpy as np
import pytest
import test_examples
from conftest import BACKEND

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[examples]`")
pd = pytest.importorskip("pandas", reason="pandas is in the extra `untied-rnn[examples]`")
pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the examples are TensorFlow's; once is enough"
)

import permuted_pixels as example  # noqa: E402 (what it needs is looked for first)

digits = test_examples.digits


@pytest.fixture
def main(monkeypatch):
    """The script as a function of its arguments."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["permuted_pixels.py", *map(str, arguments)])
        example.main()

    return call


def test_all_images_are_read_in_the_same_random_order():
    images = np.arange(2 * 7 * 5).reshape(2, 7, 5)
    sequences = example.pixel_by_pixel(images)
    assert sequences.shape == (2, 35, 1)
    first, second = sequences[..., 0]
    np.testing.assert_array_equal(np.sort(first), np.arange(35))
    np.testing.assert_array_equal(second - first, 35)
    assert np.abs(np.diff(first)).mean() > 5  # neighbours in time are none in the image
    np.testing.assert_array_equal(example.pixel_by_pixel(images[1:]), sequences[1:])


def test_an_epoch_has_each_digit_once():
    images, labels = np.arange(12.0).reshape(6, 2, 1) + 1, np.arange(6)
    batches = example.Batches(images, labels, batch_size=3, shift=0, seed=0)
    assert len(batches) == 2
    epochs = []
    for _ in range(2):
        x, y = (np.concatenate(parts) for parts in zip(batches[0], batches[1], strict=True))
        np.testing.assert_array_equal(x, example.pixel_by_pixel(images)[y])
        np.testing.assert_array_equal(np.sort(y), labels)
        epochs.append(y.tolist())
        batches.on_epoch_end()
    assert epochs[0] != epochs[1]


def test_digits_are_shifted_by_up_to_so_many_pixels(monkeypatch):
    monkeypatch.setattr(example, "pixel_by_pixel", lambda images: images)
    image = np.zeros((5, 5))
    image[2, 2] = image[0, 1] = 1
    batches = example.Batches(np.stack([image] * 400), np.zeros(400), batch_size=400, shift=1, seed=0)
    x, _ = batches[0]
    places = {tuple(np.argwhere(shifted[1:])[-1] - [1, 2]) for shifted in x}
    assert places == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    # What leaves the image is gone, and does not come back on the other side.
    assert {int(shifted.sum()) for shifted in x} == {1, 2}
    np.testing.assert_array_equal(batches[0][0], x)
    batches.on_epoch_end()
    assert not np.array_equal(batches[0][0], x)


@pytest.mark.parametrize(
    ("layer", "parameters"),
    [
        ("untied", 9 * (4 + 16 + 4)),
        ("tied", 4 + 16 + 4),
        ("kernel", 9 * (4 + 4) + 16),
        ("blocks", 9 * (4 + 4) + 16),
        ("lowrank", 9 * (4 + 4) + 16 + 9 * (4 + 4)),
        ("lstm", 4 * 24),
        ("gru", 3 * 28),
    ],
)
def test_layers(layer, parameters):
    args = argparse.Namespace(layer=layer, units=4, dropout=0.0)
    model = example.build(args, timesteps=9, steps=10)
    assert model.count_params() == parameters + 50
    assert model.layers[2].units == 4
    if layer not in example.SHARINGS:
        return
    # Identities: before training, a positive state is carried on as it is.
    for matrix in keras.ops.convert_to_numpy(model.layers[2].recurrent_kernel):
        np.testing.assert_array_equal(matrix, np.eye(4))
    x = np.zeros((1, 9, 1))
    x[0, 0] = 1
    kernel = keras.ops.convert_to_numpy(model.layers[2].kernel)[0]
    np.testing.assert_allclose(model.layers[2](x), np.maximum(kernel, 0), atol=1e-6)


def test_writes_what_it_says(main, digits, tmp_path, monkeypatch, capsys):
    x_train, y_train, x_test, y_test = example.load_digits(str(digits))
    small = x_train[:, ::4, ::4], y_train, x_test[:, ::4, ::4], y_test
    monkeypatch.setattr(example, "load_digits", {str(digits): small}.get)
    main("--coarse", "--units", 8, "--epochs", 2, "--data", digits, "--out", tmp_path)
    log = pd.read_csv(tmp_path / "metrics.csv")
    assert len(log) == 2
    printed = capsys.readouterr().out
    assert f"test accuracy {log.val_accuracy.iloc[-1]:.4f} (200 digits), untied, 730 parameters" in printed
    assert keras.saving.load_model(tmp_path / "model.keras").layers[2].timesteps == 4 * 2
    for picture in ("learning_curve.png", "weights.png"):
        assert (tmp_path / picture).stat().st_size > 5000


def test_held_out_digits_are_of_the_training_digits(main, digits, tmp_path, monkeypatch, capsys):
    x_train, y_train, *_ = example.load_digits(str(digits))
    small = x_train[:, ::4, ::4], y_train, None, None
    monkeypatch.setattr(example, "load_digits", {str(digits): small}.get)
    main("--held-out", "--units", 3, "--epochs", 1, "--batch-size", 256, "--data", digits, "--out", tmp_path)
    assert "held-out accuracy" in (printed := capsys.readouterr().out)
    assert f"({len(x_train) // 6} digits)" in printed


def test_quick_is_short_whatever_else_is_said(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["permuted_pixels.py", "--quick", "--units", "3", "--shift", "1"])
    args = example.parse()
    assert (args.coarse, args.shift, args.units, args.epochs) == (True, 0, 32, 10)


def test_weights_are_drawn_where_their_pixel_is(monkeypatch, tmp_path):
    layer = example.recurrent("untied", 4)[0]
    layer.build((None, 6, 1))
    kernel, recurrent_kernel, bias = layer.get_weights()
    place = example.reading_order(6)[2]  # of the pixel that timestep 2 reads
    kernel[:], kernel[2], recurrent_kernel[2] = 0, 3, 2 * np.eye(4)
    layer.set_weights([kernel, recurrent_kernel, bias])
    drawn = []
    imshow = example.Figure().subplots().__class__.imshow
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda a, x, **k: drawn.append(x) or imshow(a, x, **k))
    example.draw_weights(layer, (3, 2), tmp_path / "weights.png")
    for picture, norm in zip(drawn, (6, 2), strict=True):
        expected = np.zeros(6)
        expected[place] = norm
        np.testing.assert_allclose(picture, expected.reshape(3, 2), atol=1e-6)


@pytest.mark.parametrize("argument", [("--dropout", 1), ("--shift", -1), ("--layer", "cnn"), ("--units", 0)])
def test_wrong_arguments_are_refused(main, tmp_path, argument, capsys):
    with pytest.raises(SystemExit):
        main(*argument, "--out", tmp_path / "out")
    assert f"error: argument {argument[0]}: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
