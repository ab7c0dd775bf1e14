"""`scan` on TensorFlow: a `tf.while_loop` that can be differentiated any number of times, XLA or not.

TensorFlow's own gradient of a loop keeps what each step computed in `TensorList`s. Those cannot leave
an XLA-compiled function, so a compiled layer could not be trained outside of `fit`. Here the gradient
is written as another `scan`: only the carries are kept, as ordinary tensors, each step is computed
again from its carry, and the gradient of the gradient is a `scan` in turn. What a step reads at an index,
the gradient adds up at that index, and the other way around.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from keras import ops

from untied_rnn.custom_gradient import custom_gradient

Tensors = list[Any]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
Indices = list[Callable[[Any], Any] | None]


def while_scan(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    indices: Indices,
    y_specs: list[tf.TensorSpec],
    sums: int,
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    """See `untied_rnn.scan.scan`.

    Args:
        step: Pure function `step(carry, x_t, w_t) -> (carry, y_t)` that captures no tensors.
        carry, xs, sums, reverse, steps_per_iteration: See `untied_rnn.scan.scan`; no entry of `xs` is `None`.
        weights, indices: The values of the weights, and for each its index.
        y_specs: Shapes and dtypes of `y_t`, without the sums.
    """
    states, stacks, ordinary = len(carry), len(xs), len(y_specs)
    recorded_specs = [*_specs(carry), *y_specs]

    def split(tensors: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        return tensors[:states], tensors[states : states + stacks], tensors[states + stacks :]

    def recording_step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
        after, y = step(before, x, w)
        return after, [*before, *y]

    @custom_gradient
    def record(*arguments: Any) -> tuple[Tensors, Callable]:
        """The loop, returning also the carry that each step began with."""
        tensors = list(arguments)
        loop: Any = (indices, recorded_specs, sums, reverse, steps_per_iteration)
        last, recorded = _loop(recording_step, *split(tensors), *loop)

        def gradient(*upstream: Any) -> Tensors:  # only asked for by the gradient of a gradient
            with tf.GradientTape() as tape:
                tape.watch(_smooth(tensors))
                last, recorded = while_scan(recording_step, *split(tensors), *loop)
            return _gradients(tape, [*last, *recorded], tensors, upstream)

        return [*last, *recorded], gradient

    @custom_gradient
    def run(*arguments: Any) -> tuple[Tensors, Callable]:
        # Copies, for a gradient of a gradient must find these in the graph that the loop stands in.
        tensors = [tf.identity(tensor) for tensor in arguments]
        results = record(*tensors)
        last, carries, ys = results[:states], results[states : 2 * states], results[2 * states :]
        _, sequences, weights = split(tensors)

        def backward_step(d_after: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors]:
            (before, x, d_y), (w, d_sums) = split(x), (w[: len(weights)], w[len(weights) :])
            sources = [*before, *x, *w]
            with tf.GradientTape() as tape:
                tape.watch(_smooth(sources))
                after, y = step(before, x, w)
            gradients = _gradients(tape, [*after, *y], sources, [*d_after, *d_y, *d_sums])
            return gradients[:states], _smooth(gradients[states:])

        def gradient(*upstream: Any) -> Tensors:
            d_last, d_ys, d_sums = (
                upstream[:states],
                upstream[states : states + ordinary],
                upstream[states + ordinary :],
            )
            d_first, d_smooth = while_scan(
                backward_step,
                list(d_last),
                [*carries, *sequences, *d_ys],
                [*weights, *d_sums],
                [*indices, *indices[:sums]],
                [tf.TensorSpec(x.shape[1:], x.dtype) for x in _smooth(sequences)],
                len(weights),
                not reverse,
                steps_per_iteration,
            )
            remaining = iter(d_smooth)
            return [
                *d_first,
                *(next(remaining) if x.dtype.is_floating else None for x in [*sequences, *weights]),
            ]

        return [*last, *ys], gradient

    results = run(*carry, *xs, *weights)
    return results[:states], results[states:]


def _specs(tensors: Tensors) -> list[tf.TensorSpec]:
    return [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors]


def _smooth(tensors: Tensors) -> Tensors:
    """The tensors that have a gradient: a mask has none."""
    return [tensor for tensor in tensors if tensor is not None and tensor.dtype.is_floating]


def _gradients(tape: tf.GradientTape, targets: Tensors, sources: Tensors, upstream: Any) -> Tensors:
    """Gradients to `sources`, `None` where a source is not smooth."""
    # A sum may be of a longer dtype than what a step adds to it.
    upstream = [tf.cast(u, target.dtype) for u, target in zip(upstream, targets, strict=True)]
    found = iter(tape.gradient(targets, _smooth(sources), upstream, tf.UnconnectedGradients.ZERO))
    return [next(found) if source.dtype.is_floating else None for source in sources]


def _loop(
    step: Step,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    indices: Indices,
    y_specs: list[tf.TensorSpec],
    sums: int,
    reverse: bool,
    steps_per_iteration: int,
) -> tuple[Tensors, Tensors]:
    timesteps = ops.shape(xs[0])[0]

    def array(tensor: Any, length: Any) -> tf.TensorArray:
        return tf.TensorArray(
            tensor.dtype, length, clear_after_read=False, element_shape=tensor.shape[1:]
        ).unstack(tensor)

    inputs = [array(x, timesteps) for x in xs]
    sets = [array(w, ops.shape(w)[0]) for w in weights]
    outputs = [tf.TensorArray(spec.dtype, timesteps, element_shape=spec.shape) for spec in y_specs]
    for weight, index in zip(weights[:sums], indices, strict=False):
        if index is None:
            outputs.append(tf.TensorArray(weight.dtype, timesteps, element_shape=weight.shape[1:]))
        else:
            outputs.append(array(tf.zeros_like(weight), ops.shape(weight)[0]))
    carry_specs = _specs(carry)

    def single(i: Any, carry: Tensors, outputs: Tensors) -> tuple[Any, Tensors, Tensors]:
        t = timesteps - 1 - i if reverse else i
        places = [t if index is None else index(t) for index in indices]
        used = [w.read(place) for w, place in zip(sets, places, strict=True)]
        carry, y = step(carry, [x.read(t) for x in inputs], used)
        for value, spec in zip(carry, carry_specs, strict=True):
            value.set_shape(spec.shape)  # a loop's variables must not change in what is known of them
        ordinary = len(y_specs)
        written = [out.write(t, v) for out, v in zip(outputs[:ordinary], y[:ordinary], strict=True)]
        totals = zip(outputs[ordinary:], y[ordinary:], indices, places, strict=False)
        for total, part, index, place in totals:
            part = tf.cast(part, total.dtype)
            written.append(total.write(place, part if index is None else total.read(place) + part))
        return i + 1, carry, written

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
