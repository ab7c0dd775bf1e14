"""What every contestant computes: one recurrence, one loss, one optimizer, on shapes that matter.

    h_t = tanh(x_t W_t + h_{t-1} U_t + b_t),    loss = mean over the batch of |h_T - y|^2 / 2

or Keras's LSTM or GRU in place of that cell, and RMSprop (rho 0.9, epsilon 1e-7) on W, U and b.
"""

from dataclasses import dataclass

import numpy as np
from cells import CELLS

WEIGHTS = ("kernel", "recurrent_kernel", "bias")
RHO, EPSILON = 0.9, 1e-7


@dataclass(frozen=True)
class Problem:
    batch: int
    timesteps: int
    input_dim: int
    units: int
    cell: str = "simple"
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

        They keep states and gradients away from zero and one over any number of timesteps: denormal numbers
        would be timed else. The simple cell does so by orthogonal matrices and small inputs; the others by
        gates that let go of, and take in, as little as is right for so many timesteps.
        """
        rng = np.random.default_rng(1)
        cell, sets, units = CELLS[self.cell], 1 if tied else self.timesteps, self.units
        small = 0.2 / self.timesteps**0.5
        inputs, recurrent = (small, 1.0) if self.cell == "simple" else (1.0, small)
        kernel = rng.standard_normal((sets, self.input_dim, cell.gates * units)) / self.input_dim**0.5
        squares = [np.linalg.qr(rng.standard_normal((sets, units, units)))[0] for _ in range(cell.gates)]
        bias = rng.standard_normal((sets, *cell.bias_rows, cell.gates * units))
        weights = {
            "kernel": inputs * kernel,
            "recurrent_kernel": recurrent * np.concatenate(squares, axis=-1),
            # A gate of sigmoid(log T) lets 1 / e pass in T timesteps.
            "bias": small * bias + np.log(self.timesteps) * np.repeat(cell.bias_in_log_timesteps, units),
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
    "L1": Problem(128, 28, 28, 128, "lstm"),
    "L2": Problem(64, 100, 64, 256, "lstm"),
    "L3": Problem(128, 784, 1, 64, "lstm"),
    "G1": Problem(128, 28, 28, 128, "gru"),
    "G2": Problem(64, 100, 64, 256, "gru"),
    "G3": Problem(128, 784, 1, 64, "gru"),
}
NAMES = {  # of the shapes, in charts
    "S1": "rows of digits",
    "S2": "pixel by pixel",
    "S3": "100 timesteps of 512 units",
    "S4": "28 timesteps of 256 units",
    "S5": "one sample",
    "S6": "16 steps of sparse coding",
    "L1": "LSTM, 28 timesteps",
    "L2": "LSTM, 100 timesteps",
    "L3": "LSTM, pixel by pixel",
    "G1": "GRU, 28 timesteps",
    "G2": "GRU, 100 timesteps",
    "G3": "GRU, pixel by pixel",
}
TINY = Problem(4, 3, 3, 6, learning_rate=0.1)  # to check each contestant on, weight update included


def run(cell: str, x: np.ndarray, weights: dict[str, np.ndarray]) -> tuple[list, list]:
    """The states `h` before and after every timestep, and what the derivatives need of each."""
    states = [np.zeros((len(x), weights["recurrent_kernel"].shape[1]))] * CELLS[cell].states
    sequence, saved = [states[0]], []
    for t in range(x.shape[1]):
        bias = np.atleast_2d(weights["bias"][t])  # the inputs' and, of a GRU, the state's
        p = x[:, t] @ weights["kernel"][t] + bias[0]
        q = states[0] @ weights["recurrent_kernel"][t] + bias[1:].sum(0)
        states, saved_of_step = CELLS[cell].forward(p, q, states)
        sequence.append(states[0])
        saved.append(saved_of_step)
    return sequence, saved


def reference(problem: Problem, tied: bool) -> dict[str, np.ndarray]:
    """Last state, gradients, and weights after one update, in float64 by the plain loop.

    A tied contestant has one weight set: its gradient is the sum over the timesteps.
    """
    x, y = (array.astype("float64") for array in problem.data())
    w = {name: array.astype("float64") for name, array in problem.weights(tied).items()}
    cell = CELLS[problem.cell]
    states, saved = run(problem.cell, x, w)
    gradients = {name: np.zeros_like(array) for name, array in w.items()}
    upstream = [(states[-1] - y) / problem.batch] + [np.zeros_like(y)] * (cell.states - 1)
    for t in reversed(range(problem.timesteps)):
        d_p, d_q, upstream = cell.backward(saved[t], upstream)
        gradients["kernel"][t] = x[:, t].T @ d_p
        gradients["recurrent_kernel"][t] = states[t].T @ d_q
        for row, d_row in zip(np.atleast_2d(gradients["bias"][t]), (d_p, d_q), strict=False):
            row[:] = d_row.sum(0)
        upstream[0] = upstream[0] + d_q @ w["recurrent_kernel"][t].T
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
