"""What every contestant computes: one recurrence, one loss, one optimizer, on shapes that matter.

    h_t = tanh(x_t W_t + h_{t-1} U_t + b_t),    loss = mean over the batch of |h_T - y|^2 / 2

and RMSprop (rho 0.9, epsilon 1e-7) on W, U and b.
"""

from dataclasses import dataclass

import numpy as np

WEIGHTS = ("kernel", "recurrent_kernel", "bias")
RHO, EPSILON = 0.9, 1e-7


@dataclass(frozen=True)
class Problem:
    batch: int
    timesteps: int
    input_dim: int
    units: int
    learning_rate: float = 1e-9  # so that thousands of timed steps leave the numbers where they are

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs `(batch, timesteps, input_dim)` and targets `(batch, units)`."""
        rng = np.random.default_rng(0)
        return (
            rng.standard_normal((self.batch, self.timesteps, self.input_dim), dtype="float32"),
            0.1 * rng.standard_normal((self.batch, self.units), dtype="float32"),
        )

    def weights(self, tied: bool = False) -> dict[str, np.ndarray]:
        """Stacked weights, all timesteps alike where `tied`.

        Orthogonal matrices and small inputs keep states and gradients away from zero and one over any
        number of timesteps: denormal numbers would be timed else.
        """
        rng = np.random.default_rng(1)
        scale = 0.2 / self.timesteps**0.5
        sets = 1 if tied else self.timesteps
        weights = {
            "kernel": scale * rng.standard_normal((sets, self.input_dim, self.units)) / self.input_dim**0.5,
            "recurrent_kernel": np.linalg.qr(rng.standard_normal((sets, self.units, self.units)))[0],
            "bias": scale * rng.standard_normal((sets, self.units)),
        }
        return {
            name: np.repeat(w, self.timesteps // sets, axis=0).astype("float32")
            for name, w in weights.items()
        }


SHAPES = {
    "S1": Problem(128, 28, 28, 50),  # rows of digits, as in the notebook
    "S2": Problem(128, 784, 1, 128),  # digits pixel by pixel
    "S3": Problem(64, 100, 64, 512),
    "S4": Problem(128, 28, 28, 256),
    "S5": Problem(1, 28, 28, 50),  # latency of one digit
    "S6": Problem(256, 16, 250, 500),  # unfolded sparse coding
}
TINY = Problem(4, 5, 3, 6, learning_rate=0.1)  # to check each contestant on, weight update included


def reference(problem: Problem, tied: bool) -> dict[str, np.ndarray]:
    """Last state, gradients, and weights after one update, in float64 by the plain loop.

    A tied contestant has one weight set: its gradient is the sum over the timesteps.
    """
    x, y = (array.astype("float64") for array in problem.data())
    w = {name: array.astype("float64") for name, array in problem.weights(tied).items()}
    states = [np.zeros((problem.batch, problem.units))]
    for t in range(problem.timesteps):
        a = x[:, t] @ w["kernel"][t] + states[-1] @ w["recurrent_kernel"][t] + w["bias"][t]
        states.append(np.tanh(a))
    gradients = {name: np.zeros_like(array) for name, array in w.items()}
    upstream = (states[-1] - y) / problem.batch
    for t in reversed(range(problem.timesteps)):
        delta = upstream * (1 - states[t + 1] ** 2)
        gradients["kernel"][t] = x[:, t].T @ delta
        gradients["recurrent_kernel"][t] = states[t].T @ delta
        gradients["bias"][t] = delta.sum(0)
        upstream = delta @ w["recurrent_kernel"][t].T
    if tied:
        gradients = {name: g.sum(0) for name, g in gradients.items()}
        w = {name: array[0] for name, array in w.items()}
    updated = {
        name: w[name] - problem.learning_rate * g / np.sqrt((1 - RHO) * g**2 + EPSILON)
        for name, g in gradients.items()
    }
    return {
        "state": states[-1],
        **{f"gradient of {name}": g for name, g in gradients.items()},
        **{f"updated {name}": array for name, array in updated.items()},
    }
