"""Sizes, random weights, masks and choices of cases that the tests of layers share."""

import itertools
import random

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


def set_numbers(layer, timesteps):
    """The weight set that each timestep uses, of a layer whose weights have one sharing."""
    return layer.timestep_weights.stacks[0].sets.index(np.arange(timesteps))


def pairwise(options):
    """Few cases in which each value of an option meets each value of every other option.

    Args:
        options: The values of each option, by its name.

    Returns:
        The same list of dictionaries every time. Each begins with a pair that no case before it has, and is
        filled up with the values that meet most such pairs.
    """
    draw = random.Random(0)

    def pair(a, b):
        return tuple(sorted((a, b), key=repr))

    values = {name: [(name, value) for value in values] for name, values in options.items()}
    missing = {
        pair(*two)
        for some, others in itertools.combinations(values.values(), 2)
        for two in itertools.product(some, others)
    }
    cases = []
    while missing:
        chosen = dict(min(missing, key=repr))
        for name in draw.sample([name for name in options if name not in chosen], len(options) - 2):
            met = {
                item: sum(pair(item, other) in missing for other in chosen.items()) for item in values[name]
            }
            chosen |= [max(values[name], key=lambda item: (met[item], draw.random()))]
        missing -= {pair(*two) for two in itertools.combinations(chosen.items(), 2)}
        cases.append({name: chosen[name] for name in options})
    return cases


def case_name(case):
    return "-".join(f"{name}={value}" for name, value in case.items() if value not in (False, None, "none"))
