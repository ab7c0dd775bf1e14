"""Trains an untied RNN on MNIST digits pixel by pixel, in an order that shows no picture: 784 timesteps.

    python examples/permuted_pixels.py --quick                  # 98 timesteps, 5,000 bundled digits: seconds
    python examples/permuted_pixels.py --data mnist             # all 70,000 digits: an hour on two cores
    python examples/permuted_pixels.py --data mnist --layer gru
    python examples/permuted_pixels.py --data mnist --layer kernel --units 115     # below 200,000 parameters

Writes metrics.csv, learning_curve.png and model.keras to `--out`, and for an untied layer weights.png.
"""

import argparse
import pathlib
from typing import Any

import keras
import numpy as np
import pandas as pd
from command_line import end_on_interrupt, positive, replace, start, verbosity
from digits import load_digits
from matplotlib.figure import Figure

from untied_rnn import UntiedSimpleRNN
from untied_rnn.sharing import Blocks, LowRank

SHARINGS: dict[str, dict[str, Any]] = {  # by --layer
    "untied": {"sharing": "untied"},
    "tied": {"sharing": "tied"},
    "kernel": {"sharing": "untied", "recurrent_sharing": "tied"},
    "blocks": {"sharing": "untied", "recurrent_sharing": Blocks(49)},
    "lowrank": {"sharing": "untied", "recurrent_sharing": LowRank(1)},
}
HELD_OUT = 6  # one training digit of six


def recurrent(layer: str, units: int) -> tuple[keras.Layer, float]:
    """A layer, and the learning rate that it trains with."""
    if layer in ("lstm", "gru"):
        return {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[layer](units), 1e-3
    # Identities and relu hand on what has been read for hundreds of timesteps; tanh would squash it.
    rnn = UntiedSimpleRNN(units, activation="relu", recurrent_initializer="identity", **SHARINGS[layer])
    return rnn, 1e-4


def build(args: argparse.Namespace, timesteps: int, steps: int) -> keras.Model:
    pixels = keras.Input((timesteps, 1))
    layer, rate = recurrent(args.layer, args.units)
    # Drops single pixels. The layer's own `dropout`, with one mask for all timesteps, drops whole digits.
    state = layer(keras.layers.Dropout(args.dropout)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(10)(state))
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # `clipnorm` shortens the gradients of all timesteps together; the measured accuracies are of that.
    model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0), loss, metrics=["accuracy"])
    return model


def reading_order(pixels: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(pixels)


def pixel_by_pixel(images: np.ndarray) -> np.ndarray:
    """The pixels of each image as a sequence, in one random order for all."""
    pixels = images.reshape(len(images), -1, 1)
    return pixels[:, reading_order(pixels.shape[1])]


class Batches(keras.utils.PyDataset):
    """Shuffled training digits, each shifted at random by up to `shift` pixels before its pixels are read."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, batch_size: int, shift: int, seed: int):
        super().__init__()
        self.size = images.shape[1:]
        self.images = np.pad(images, [(0, 0), (shift, shift), (shift, shift)])
        self.labels, self.batch_size, self.shift, self.seed = labels, batch_size, shift, seed
        self.epoch = 0
        self.order = self.permutation()

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.order = self.permutation()

    def permutation(self) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.labels))

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = self.order[i * self.batch_size :][: self.batch_size]
        windows = np.lib.stride_tricks.sliding_window_view(self.images[chosen], self.size, axis=(1, 2))
        rng = np.random.default_rng([self.seed, self.epoch, i])
        down, right = rng.integers(0, 2 * self.shift + 1, (2, len(chosen)))
        return pixel_by_pixel(windows[np.arange(len(chosen)), down, right]), self.labels[chosen]


def draw(log: pd.DataFrame, path: pathlib.Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(log.epoch + 1, 1 - log.accuracy, label="training")
    axes.semilogy(log.epoch + 1, 1 - log.val_accuracy, label="not trained on")
    axes.set(xlabel="epoch", ylabel="share of errors")
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_weights(layer: UntiedSimpleRNN, size: tuple[int, int], path: pathlib.Path) -> None:
    """What training has made of each timestep's weights, at the place of the pixel that it reads."""
    kernel, recurrent_kernel, _ = layer.get_weights()
    norms = {
        "norm of $W_t$": np.linalg.norm(kernel, axis=(1, 2)),
        "norm of $U_t - 1$": np.linalg.norm(recurrent_kernel - np.eye(layer.units), axis=(1, 2)),
    }
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2), norms.items(), strict=True):
        picture = np.empty(len(values))
        picture[reading_order(len(values))] = values
        figure.colorbar(axes.imshow(picture.reshape(size), aspect="auto"), ax=axes)
        axes.set(title=title, xticks=[], yticks=[])
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="sample", help="sample, mnist or a .npz file in Keras's layout")
    parser.add_argument("--layer", choices=[*SHARINGS, "lstm", "gru"], default="untied")
    parser.add_argument("--units", type=positive, default=128, help="hidden units (default 128)")
    parser.add_argument("--epochs", type=positive, default=24)
    parser.add_argument("--batch-size", type=positive, default=128)
    parser.add_argument("--dropout", type=float, default=0.05, help="share of the pixels (default 0.05)")
    parser.add_argument(
        "--shift", type=int, default=2, help="shift training digits by up to so many pixels (default 2)"
    )
    parser.add_argument("--coarse", action="store_true", help="digits of 14 x 7 pixels: 98 timesteps")
    parser.add_argument(
        "--held-out", action="store_true", help="evaluate on a sixth of the training digits, to choose by"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/permuted_pixels"))
    parser.add_argument("--quick", action="store_true", help="--coarse --shift 0, 32 units, 10 epochs")
    args = parser.parse_args()
    if not 0 <= args.dropout < 1:
        parser.error(f"argument --dropout: expected from 0 to 1, received {args.dropout}")
    if args.shift < 0:
        parser.error(f"argument --shift: expected 0 or more, received {args.shift}")
    if args.quick:
        args.coarse, args.shift, args.units, args.epochs = True, 0, 32, 10
    return args


def main() -> None:
    start(train, parse())


def train(args: argparse.Namespace) -> None:
    x_train, y_train, x_test, y_test = load_digits(args.data)
    if args.held_out:
        kept = len(x_train) - len(x_train) // HELD_OUT
        x_train, y_train, x_test, y_test = x_train[:kept], y_train[:kept], x_train[kept:], y_train[kept:]
    if args.coarse:
        x_train, x_test = x_train[:, ::2, ::4], x_test[:, ::2, ::4]
    args.out.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    batches = Batches(x_train, y_train, args.batch_size, args.shift, args.seed)
    test = pixel_by_pixel(x_test), y_test
    model = build(args, test[0].shape[1], args.epochs * len(batches))
    model.summary()
    model.fit(
        batches,
        epochs=args.epochs,
        validation_data=test,
        validation_batch_size=1000,
        shuffle=False,  # `Batches` has shuffled
        verbose=verbosity(),
        callbacks=[keras.callbacks.CSVLogger(args.out / "metrics.csv")],
    )
    replace(args.out / "model.keras", model.save)
    replace(args.out / "learning_curve.png", lambda path: draw(pd.read_csv(args.out / "metrics.csv"), path))
    if args.layer == "untied":
        size = x_test.shape[1:]
        replace(args.out / "weights.png", lambda path: draw_weights(model.layers[2], size, path))
    _, accuracy = model.evaluate(*test, batch_size=1000, verbose=0)
    part = "held-out" if args.held_out else "test"
    print(
        f"{part} accuracy {accuracy:.4f} ({len(y_test)} digits), {args.layer}, "
        f"{model.count_params():,} parameters; results in {args.out}"
    )


if __name__ == "__main__":
    end_on_interrupt("interrupted")
    main()
