"""One check that a layer equals its NumPy loop: outputs, and gradients to every element."""

import functools

import keras
import numpy as np
import reference
from autodiff import names, outputs_and_gradients
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


def stacks_of(layer, length):
    """The weights of the first timesteps, one for each of them."""
    at = [layer.weights_at(t) for t in range(length)]
    return {name: np.stack([weights[name] for weights in at]) for name in at[0]}


LOOPS = {name: functools.partial(loop, step) for name, step in STEPS.items()} | {"simple": simple_loop}


def check_equals_the_loop(layer, loop, index, x, states, rng, *, given=True, mask=None, training=False):
    """Checks a built layer with random weights.

    Args:
        layer: The layer.
        loop: `loop(x, states, weights, **settings)`, outputs of all timesteps and a list of the last states.
            It gets one weight for each timestep, whatever the layer's timesteps share.
        index: The weight set that each timestep uses, in a list.
        x: Inputs.
        states: The states that the loop starts in.
        rng: Draws the cotangents.
        given: Whether the layer is given these states, or has them of its own.
        mask, training: Arguments of the call.
    """
    length = x.shape[1]
    frozen = sorted({index[t] for t in layer.frozen_timesteps or []})
    initial = {f"initial_state {i}": state for i, state in enumerate(states)}
    arrays = {"x": x, **initial, **stacks_of(layer, length)}
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
    assert set(gradients) == {"x", *(initial if given else []), *names(layer)}
    for name, gradient in gradients.items():
        wanted = slopes[name]
        if name not in ("x", *initial):  # the sums over the timesteps of each set that is trained
            wanted = np.zeros((len(gradient) + len(frozen), *wanted.shape[1:]))
            np.add.at(wanted, index[:length], slopes[name])
            wanted = np.delete(wanted, frozen, axis=0)
        np.testing.assert_allclose(gradient, wanted, **EXACT, err_msg=name)
