"""`LowRank`: deviations of low rank from one weight."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from untied_rnn import _checks
from untied_rnn._loops.batched import Reading
from untied_rnn._types import Initializer, Tensor
from untied_rnn.sharing._base import Parameter, SetSharing, Sharing, mean
from untied_rnn.sharing._sets import Tied, Untied

_UNTIED = Untied()


@keras.saving.register_keras_serializable(package="untied_rnn")
@dataclasses.dataclass(frozen=True)
class LowRank(Sharing):
    """One weight for all timesteps, and deviations of low rank.

    ```
    W_t = W + A_s B_s                  s = the set of timestep t in `sharing`
    ```

    For `units` inputs and outputs, a timestep takes `2 * rank * units` parameters in place of `units ** 2`. A
    layer starts as a tied one: all `B_s` are zero. Axes of a weight before the last count as one. A weight
    whose rank cannot be larger, as a bias, gets whole deviations `D_s` in place of `A_s B_s`.

    Args:
        rank: Integer from 0: 0 is `Tied`.
        sharing: Which timesteps share a deviation.

    References:
        - [Hu et al., 2021, LoRA](https://arxiv.org/abs/2106.09685), deviations of low rank from weights that
          are trained already.
        - [Bae et al., 2024, Relaxed recursive transformers](https://arxiv.org/abs/2410.20672), from the
          weights that all depths of a network share.
    """

    rank: int
    sharing: SetSharing = _UNTIED

    def __post_init__(self) -> None:
        _checks.integer_from_0("rank", self.rank)
        if not isinstance(self.sharing, SetSharing):
            raise TypeError(
                "Expected `sharing` to say which timesteps share a deviation: `Untied()`, `Blocks(7)`, or "
                f"another `SetSharing`. Received: sharing={self.sharing!r}"
            )

    def parameters(
        self, shape: tuple[int, ...], timesteps: int | None, initializer: Initializer
    ) -> dict[str, Parameter | np.ndarray]:
        rows, columns = math.prod(shape[:-1]), shape[-1] if shape else 1
        mean: dict[str, Parameter | np.ndarray] = {"": Parameter(shape, Tied(), initializer)}
        if not self.rank:
            return mean
        if self.rank >= min(rows, columns):
            return {**mean, "deviation": Parameter(shape, self.sharing, keras.initializers.Zeros())}
        seed = getattr(initializer, "seed", None)
        if isinstance(seed, int):  # another one, or A would repeat the random numbers of W
            seed = int(np.random.SeedSequence([seed % 2**64, self.rank]).generate_state(1)[0])
        normal = keras.initializers.HeNormal(seed if isinstance(seed, int) else None)
        return {
            **mean,
            "a": Parameter((rows, self.rank), self.sharing, normal),
            "b": Parameter((self.rank, columns), self.sharing, keras.initializers.Zeros()),
        }

    def weight(self, *parts: Tensor) -> Tensor:
        mean, *deviation = parts
        if len(deviation) < 2:
            return mean + deviation[0] if deviation else mean
        a, b = deviation
        return mean + ops.reshape(ops.matmul(a, b), mean.shape)

    def product(self, x: Tensor, *readings: Reading) -> Tensor:
        mean, *deviation = readings
        y = mean.product(x)
        if deviation:
            for factor in deviation:
                x = factor.product(x)
            y = y + x
        return y

    def fit(self, weights: np.ndarray, start: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of the deviations from the mean, or from the W of `start` if that is closer, the largest parts."""
        fits = [self._fit(weights, start, centre) for centre in (mean(weights), start[""][0])]
        return min(fits, key=lambda fit: fit[0])[1]

    def _fit(
        self, weights: np.ndarray, start: dict[str, np.ndarray], centre: np.ndarray
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The size of what is lost, and the parameters, for a given W."""
        deviations = weights - centre
        if not self.rank:
            return float(np.linalg.norm(deviations)), {"": centre[None]}
        count = len(start["b" if "b" in start else "deviation"])
        shared = self.sharing.fit(deviations, {"": np.empty(count)})[""]
        index = self.sharing.sets(len(weights)).index(np.arange(len(weights)))
        lost = float(np.linalg.norm(deviations - shared[index]))
        if "b" not in start:
            return lost, {"": centre[None], "deviation": shared}
        u, s, v = np.linalg.svd(shared.reshape(count, -1, centre.shape[-1]), full_matrices=False)
        root = np.sqrt(s[:, None, : self.rank])
        a, b = u[..., : self.rank] * root, v[:, : self.rank] * np.swapaxes(root, 1, 2)
        # Where there is nothing to represent, A stays as it was drawn: it would not learn if both were zero.
        empty = root <= 1e-3 * np.sqrt(np.abs(weights).max())
        a, b = np.where(empty, start["a"], a), np.where(np.swapaxes(empty, 1, 2), 0, b)
        lost = math.hypot(lost, float(np.linalg.norm(s[:, self.rank :])))
        return lost, {"": centre[None], "a": a, "b": b}

    @property
    def timesteps(self) -> int | None:
        return self.sharing.timesteps

    @property
    def any_length(self) -> bool:
        return self.sharing.any_length
