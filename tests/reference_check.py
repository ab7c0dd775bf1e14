"""One check that a layer equals its NumPy loop: outputs, and gradients to every element."""

import functools

import keras
import numpy as np
import reference
import sharing_reference
from autodiff import outputs_and_gradients
from cases import set_numbers
from conftest import DTYPE, EXACT

STEPS = {
    "lstm": reference.lstm_step,
    "gru": reference.gru_step,
    "gru, reset before": reference.gru_step_reset_before,
}


def loop(step, x, states, weights, **settings):
    """The loop over a step of `reference`, with one weight for each timestep."""
    return reference.rnn(step, x, states, weights, range(x.shape[1]), **settings)


def simple_loop(x, states, weights, **settings):
    outputs, last = reference.simple_rnn(x, *states, **weights, **settings)
    return outputs, [last]


def simple_dropout(layer, batch, input_dim):
    """The dropout masks of the first call, as settings of `simple_loop`: drawn in the layer's order."""
    seeds = keras.random.SeedGenerator(layer.seed)

    def drawn(rate, size):
        if not rate:
            return 1.0
        ones = keras.ops.ones((batch, size), DTYPE)
        return keras.ops.convert_to_numpy(keras.random.dropout(ones, rate, seed=seeds))

    return {
        "input_dropout": drawn(layer.dropout, input_dim),
        "state_dropout": drawn(layer.recurrent_dropout, layer.units),
    }


def parameters_of(layer):
    """What the weights of a layer are made of: for each weight arrays by name."""
    return {
        weight.name: {name: stack.array() for name, stack in weight.variable_stacks.items()}
        for weight in layer.timestep_weights
    }


def weights_along_time(layer, length):
    """The weights of the first timesteps, one for each of them."""
    parameters = parameters_of(layer)
    return {
        weight.name: sharing_reference.along_time(
            weight.sharing, parameters[weight.name], length, layer.timesteps
        )
        for weight in layer.timestep_weights
    }


def parameter_gradients(layer, slopes):
    """The gradients of trained variables by name, from the gradients of each timestep's weight."""
    found = {}
    frozen = layer.frozen_timesteps or []
    sets = set_numbers(layer, max(frozen) + 1)[frozen] if frozen else []
    for weight in layer.timestep_weights:
        parameters = parameters_of(layer)[weight.name]
        parts = sharing_reference.gradients(weight.sharing, parameters, slopes[weight.name], layer.timesteps)
        for name, gradient in parts.items():
            found[f"{weight.name}_{name}".strip("_")] = np.delete(gradient, sets, axis=0)
    return found


LOOPS = {name: functools.partial(loop, step) for name, step in STEPS.items()} | {"simple": simple_loop}


def check_equals_the_loop(layer, loop, x, states, rng, *, given=True, mask=None, training=False, first=0):
    """Checks a built layer with random weights.

    Args:
        layer: The layer.
        loop: `loop(x, states, weights, **settings)`, outputs of all timesteps and a list of the last states.
            It gets one weight for each timestep, whatever the layer's timesteps share.
        x: Inputs.
        states: The states that the loop starts in.
        rng: Draws the cotangents.
        given: Whether the layer is given these states, or has them of its own.
        mask, training: Arguments of the call.
        first: The timestep that the layer is at.
    """
    length = x.shape[1]
    initial = {f"initial_state {i}": state for i, state in enumerate(states)}
    weights = {name: array[first:] for name, array in weights_along_time(layer, first + length).items()}
    arrays = {"x": x, **initial, **weights}
    settings = {"mask": mask, "go_backwards": layer.go_backwards}
    settings["zero_output_for_mask"] = layer.zero_output_for_mask

    def call(x, **others):
        states = [others.pop(name) for name in initial]
        outputs, last = loop(x, states, others, **settings)
        outputs = outputs if layer.return_sequences else outputs[:, -1]
        return (outputs, *last) if layer.return_state else (outputs,)

    expected = call(**arrays)
    cotangents = [rng.normal(size=y.shape) for y in expected]
    slopes = reference.gradients(
        lambda **arrays: sum((c * y).sum() for c, y in zip(cotangents, call(**arrays), strict=True)), arrays
    )
    outputs, gradients = outputs_and_gradients(
        layer, x, cotangents, states if given else None, mask=mask, training=training
    )
    for i, (received, wanted) in enumerate(zip(outputs, expected, strict=True)):
        np.testing.assert_allclose(received, wanted, **EXACT, err_msg=f"output {i}")
    wanted = {name: slopes[name] for name in ("x", *(initial if given else []))}
    before = {name: np.zeros((first, *array.shape[1:])) for name, array in weights.items()}
    wanted |= parameter_gradients(
        layer, {name: np.concatenate([before[name], slopes[name]]) for name in before}
    )
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, wanted[name], **EXACT, err_msg=name)
