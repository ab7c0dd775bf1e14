"""One step of each cell and its derivative, in NumPy, by hand.

`p = x W + b` comes from the inputs and `q = h U` (`h U + b'` where the cell has two biases) from the state;
`h` is the first of the `states`. `forward` also returns what `backward` needs. `backward` takes the
derivatives by the new states, and returns the derivatives by `p`, by `q` and by the earlier states (other
than through `q`).
"""

import numpy as np


def _sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


class Simple:
    """h = tanh(p + q)"""

    states, gates, bias_rows = 1, 1, ()
    bias_in_log_timesteps = (0.0,)

    @staticmethod
    def forward(p: np.ndarray, q: np.ndarray, states: list) -> tuple:
        h = np.tanh(p + q)
        return [h], h

    @staticmethod
    def backward(h: np.ndarray, d_states: list) -> tuple:
        d_a = d_states[0] * (1 - h**2)
        return d_a, d_a, [0.0]


class LSTM:
    """c = f c_before + i g, h = o tanh(c); i, f, o are sigmoids and g the tanh of their parts of p + q."""

    states, gates, bias_rows = 2, 4, ()
    bias_in_log_timesteps = (-0.5, 1.0, 0.0, 0.0)

    @staticmethod
    def forward(p: np.ndarray, q: np.ndarray, states: list) -> tuple:
        i, f, g, o = np.split(p + q, 4, axis=-1)
        i, f, g, o = _sigmoid(i), _sigmoid(f), np.tanh(g), _sigmoid(o)
        c = f * states[1] + i * g
        return [o * np.tanh(c), c], (i, f, g, o, states[1], np.tanh(c))

    @staticmethod
    def backward(saved: tuple, d_states: list) -> tuple:
        i, f, g, o, before, tanh_c = saved
        d_h, d_c = d_states
        d_c = d_c + d_h * o * (1 - tanh_c**2)
        d_a = np.concatenate(
            [
                d_c * g * i * (1 - i),
                d_c * before * f * (1 - f),
                d_c * i * (1 - g**2),
                d_h * tanh_c * o * (1 - o),
            ],
            axis=-1,
        )
        return d_a, d_a, [0.0, d_c * f]


class GRU:
    """h = z h_before + (1 - z) g, g = tanh(p_g + r q_g); z and r are sigmoids of their parts of p + q."""

    states, gates, bias_rows = 1, 3, (2,)
    bias_in_log_timesteps = (0.5, 0.0, 0.0)  # twice

    @staticmethod
    def forward(p: np.ndarray, q: np.ndarray, states: list) -> tuple:
        (p_z, p_r, p_g), (q_z, q_r, q_g) = np.split(p, 3, axis=-1), np.split(q, 3, axis=-1)
        z, r = _sigmoid(p_z + q_z), _sigmoid(p_r + q_r)
        g = np.tanh(p_g + r * q_g)
        return [z * states[0] + (1 - z) * g], (z, r, g, q_g, states[0])

    @staticmethod
    def backward(saved: tuple, d_states: list) -> tuple:
        z, r, g, q_g, before = saved
        d_h = d_states[0]
        d_g = d_h * (1 - z) * (1 - g**2)
        d_z, d_r = d_h * (before - g) * z * (1 - z), d_g * q_g * r * (1 - r)
        return np.concatenate([d_z, d_r, d_g], -1), np.concatenate([d_z, d_r, d_g * r], -1), [d_h * z]


CELLS = {"simple": Simple, "lstm": LSTM, "gru": GRU}
