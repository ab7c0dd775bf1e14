"""`scan` on TensorFlow: a `tf.while_loop` that can be differentiated any number of times, XLA or not.

TensorFlow's own gradient of a loop keeps what each step computed in `TensorList`s. Those cannot leave
an XLA-compiled function, so a compiled layer could not be trained outside of `fit`. Here the gradient
is written as another `scan`: only the carries are kept, as ordinary tensors, each step is computed
again from its carry, and the gradient of the gradient is a `scan` in turn.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

Tensors = list[Any]
Step = Callable[[Tensors, Tensors], tuple[Tensors, Tensors]]


def while_scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    y_specs: list[tf.TensorSpec],
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    """See `untied_rnn.scan.scan`.

    Args:
        step: Pure function `step(carry, x_t) -> (carry, y_t)` that captures no tensors.
        carry, xs, reverse, steps_per_iteration: See `untied_rnn.scan.scan`; no entry of `xs` is `None`.
        y_specs: Shapes and dtypes of `y_t`.
    """
    states = len(carry)
    recorded_specs = [*y_specs, *_specs(carry)]

    def recording_step(before: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        after, y = step(before, x)
        return after, [*y, *before]

    @tf.custom_gradient
    def record(*arguments: Any) -> tuple[Tensors, Callable]:
        """The loop, returning also the carry that each step began with."""
        tensors = list(arguments)
        problem = (recording_step, tensors[:states], tensors[states:], recorded_specs)
        last, recorded = _loop(*problem, reverse, steps_per_iteration)

        def gradient(*upstream: Any) -> Tensors:  # only asked for by the gradient of a gradient
            with tf.GradientTape() as tape:
                tape.watch(_smooth(tensors))
                last, recorded = while_scan(*problem, reverse, steps_per_iteration)
            return _gradients(tape, [*last, *recorded], tensors, upstream)

        return [*last, *recorded], gradient

    @tf.custom_gradient
    def run(*arguments: Any) -> tuple[Tensors, Callable]:
        # Copies, for a gradient of a gradient must find these in the graph that the loop stands in.
        tensors = [tf.identity(tensor) for tensor in arguments]
        results = record(*tensors)
        outputs, carries = results[: states + len(y_specs)], results[states + len(y_specs) :]
        sequences = tensors[states:]

        def backward_step(d_after: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
            before, x, d_y = x[:states], x[states : states + len(xs)], x[states + len(xs) :]
            with tf.GradientTape() as tape:
                tape.watch(_smooth([*before, *x]))
                after, y = step(before, x)
            gradients = _gradients(tape, [*after, *y], [*before, *x], [*d_after, *d_y])
            return gradients[:states], _smooth(gradients[states:])

        def gradient(*upstream: Any) -> Tensors:
            d_first, d_smooth = while_scan(
                backward_step,
                list(upstream[:states]),
                [*carries, *sequences, *upstream[states:]],
                [tf.TensorSpec(x.shape[1:], x.dtype) for x in _smooth(sequences)],
                not reverse,
                steps_per_iteration,
            )
            remaining = iter(d_smooth)
            return [*d_first, *(next(remaining) if x.dtype.is_floating else None for x in sequences)]

        return outputs, gradient

    results = run(*carry, *xs)
    return results[:states], results[states:]


def _specs(tensors: Tensors) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]


def _smooth(tensors: Tensors) -> Tensors:
    """Those that have a gradient: a mask has none."""
    return [tensor for tensor in tensors if tensor is not None and tensor.dtype.is_floating]


def _gradients(tape: tf.GradientTape, targets: Tensors, sources: Tensors, upstream: Any) -> Tensors:
    """Gradients to `sources`, `None` for those that are not smooth."""
    found = iter(tape.gradient(targets, _smooth(sources), upstream, tf.UnconnectedGradients.ZERO))
    return [next(found) if source.dtype.is_floating else None for source in sources]


def _loop(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    y_specs: list[tf.TensorSpec],
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    timesteps = ops.shape(xs[0])[0]
    inputs = [tf.TensorArray(x.dtype, timesteps, element_shape=x.shape[1:]).unstack(x) for x in xs]
    outputs = [tf.TensorArray(spec.dtype, timesteps, element_shape=spec.shape) for spec in y_specs]
    carry_specs = _specs(carry)

    def single(i: Any, carry: Tensors, outputs: Tensors) -> tuple[Any, Tensors, Tensors]:
        t = timesteps - 1 - i if reverse else i
        carry, y = step(carry, [x.read(t) for x in inputs])
        for value, spec in zip(carry, carry_specs, strict=True):
            value.set_shape(spec.shape)  # a loop's variables must not change in what is known of them
        return i + 1, carry, [out.write(t, value) for out, value in zip(outputs, y, strict=True)]

    def several(*loop_vars: Any) -> tuple:
        for _ in range(steps_per_iteration):
            loop_vars = single(*loop_vars)
        return loop_vars

    def loop(body: Callable, loop_vars: tuple, iterations: Any) -> tuple:
        # The bound is also what XLA sizes buffers by.
        return tf.while_loop(
            lambda *_: True, body, loop_vars, maximum_iterations=iterations, parallel_iterations=1
        )

    loop_vars = loop(several, (tf.constant(0), carry, outputs), timesteps // steps_per_iteration)
    if steps_per_iteration > 1:
        loop_vars = loop(single, loop_vars, timesteps % steps_per_iteration)
    _, carry, outputs = loop_vars
    return carry, [output.stack() for output in outputs]
