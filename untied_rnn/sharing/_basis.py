"""`Basis`: weights that are combinations of functions of time."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from untied_rnn import _checks
from untied_rnn._loops.batched import Reading
from untied_rnn._types import Initializer, Tensor
from untied_rnn._weights.draws import StackInitializer, draw
from untied_rnn.sharing._base import Parameter, Sharing
from untied_rnn.sharing._sets import Tied


@keras.saving.register_keras_serializable(package="untied_rnn")
@dataclasses.dataclass(frozen=True)
class Basis(Sharing):
    """Weights that are combinations of a few functions of time.

    ```
    W_t = sum_k  phi_k(t) C_k          k = 1 .. size
    ```

    The functions are of relative time, so that the weights `C_k` of a layer fit any number of timesteps. A
    layer starts as a tied one.

    Args:
        size: Positive integer, the number of functions.
        kind: `"spline"`: linear interpolation between `size` weights that stand at equal distances.
            `"fourier"`: a constant, and sines and cosines with 1, 2, ... periods. Or a function
            `(timesteps, size)` that returns an array `(timesteps, size)`.

    Raises:
        ValueError: When a layer is built, if no combination of the functions is constant.
    """

    size: int
    kind: str | Callable[[int, int], np.ndarray] = "spline"

    def __post_init__(self) -> None:
        _checks.positive_integer("size", self.size)
        if not callable(self.kind) and self.kind not in _KINDS:
            raise ValueError(
                f"`kind` must be one of {', '.join(map(repr, _KINDS))}, or a function. "
                f"Received: kind={self.kind!r}"
            )

    def functions(self, timesteps: int | None) -> np.ndarray:
        """`phi`, `(timesteps, size)`."""
        assert timesteps is not None
        function = self.kind if callable(self.kind) else _KINDS[self.kind]
        values = np.asarray(function(timesteps, self.size), "float64")
        if values.shape != (timesteps, self.size) or not np.all(np.isfinite(values)):
            raise ValueError(
                f"Expected finite values of shape {(timesteps, self.size)}, (timesteps, size), from `kind`. "
                f"Received: {values.shape} from {self!r}"
            )
        return values

    def parameters(
        self, shape: tuple[int, ...], timesteps: int | None, initializer: Initializer
    ) -> dict[str, Parameter | np.ndarray]:
        phi = self.functions(timesteps)
        constant = np.linalg.lstsq(phi, np.ones(len(phi)), rcond=None)[0]
        if not np.allclose(phi @ constant, 1):
            raise ValueError(
                "Expected functions of time of which some combination is constant, as a layer starts with "
                f"equal weights at all timesteps. Received: {self!r} for {timesteps} timesteps"
            )
        return {
            "": Parameter((self.size, *shape), Tied(), _Multiples(initializer, constant)),
            "functions": phi,
        }

    def weight(self, *parts: Tensor) -> Tensor:
        weights, phi = parts
        return ops.tensordot(phi, weights, 1)

    def product(self, x: Tensor, *readings: Reading) -> Tensor:
        weights, phi = (reading.along_time(ops.shape(x)[0]) for reading in readings)
        return sum(
            ops.cast(phi[:, k, None, None], x.dtype) * ops.matmul(x, ops.cast(weights[0, k], x.dtype))
            for k in range(self.size)
        )

    def fit(self, weights: np.ndarray, start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """By least squares."""
        flat = weights.reshape(len(weights), -1).astype("float64")
        found = np.linalg.lstsq(self.functions(len(weights)), flat, rcond=None)[0]
        return {"": found.reshape(start[""].shape)}


class _Multiples(StackInitializer):
    """Draws one weight, and returns multiples of it."""

    def __init__(self, initializer: Initializer, factors: np.ndarray):
        self.initializer, self.factors = initializer, factors

    def draw(self, sets: np.ndarray, total: int, shape: tuple[int, ...], dtype: str | None) -> Tensor:
        one = ops.expand_dims(draw(self.initializer, sets, total, shape[1:], dtype), 1)
        factors = ops.convert_to_tensor(self.factors, dtype)
        return one * ops.reshape(factors, (len(self.factors), *[1] * (len(shape) - 1)))


def _spline(timesteps: int, size: int) -> np.ndarray:
    """Each function is 1 at one of `size` points, 0 at the others and linear between them."""
    if size == 1:
        return np.ones((timesteps, 1))
    places = np.linspace(0, size - 1, timesteps)
    return np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0)


def _fourier(timesteps: int, size: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(timesteps) / timesteps
    waves = [[np.cos(k * angles), np.sin(k * angles)] for k in range(1, size // 2 + 1)]
    return np.stack([np.ones(timesteps), *(wave for pair in waves for wave in pair)][:size], axis=1)


_KINDS = {"spline": _spline, "fourier": _fourier}
