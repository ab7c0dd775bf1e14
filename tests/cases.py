"""Sizes, random weights and masks that the tests of layers share."""

import numpy as np

B, T, I, U, O = 3, 4, 2, 3, 2  # noqa: E741 (the letters of the formulas)


def randomised(layer, rng):
    """Gives a built layer random weights of about unit gain, biases included."""
    layer.set_weights([rng.normal(size=w.shape) / np.sqrt(w.shape[-1]) for w in layer.weights])
    return layer


def random_mask(rng):
    """Rows: first step masked, last step masked, all masked."""
    mask = rng.random((B, T)) < 0.6
    mask[0, 0], mask[0, 1], mask[1, 0], mask[1, -1], mask[2] = False, True, True, False, False
    return mask


def case_name(case):
    return "-".join(f"{name}={value}" for name, value in case.items() if value not in (False, None, "none"))
