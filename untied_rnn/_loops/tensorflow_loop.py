"""`scan` on TensorFlow: a `tf.while_loop` that can be differentiated any number of times, XLA or not.

TensorFlow's own gradient of a loop keeps what each step computed in `TensorList`s. Those cannot leave
an XLA-compiled function, so a compiled layer could not be trained outside of `fit`. Here the gradient
is written as another `scan`: only the carries are kept, as ordinary tensors, each step is computed
again from its carry, and the gradient of the gradient is a `scan` in turn. What a step reads at an index,
the gradient adds up at that index, and the other way around.

    while_scan -> run, which is `record`             gradient: `while_scan` of the steps' gradients
                  record, which is `_loop`           gradient: the gradient of `while_scan`
                  _loop, a `tf.while_loop`           (never asked for one)
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf
from keras import ops

from untied_rnn._loops.custom_gradient import custom_gradient
from untied_rnn._loops.loop import ListStep, Loop
from untied_rnn._loops.nested import flat, nested_as
from untied_rnn._types import Tensors


class _Operands(NamedTuple):
    carry: Tensors
    xs: Tensors
    weights: Tensors


class _Results(NamedTuple):
    carry: Tensors
    ys: Any
    sums: Tensors


class _Recorded(NamedTuple):
    """The `ys` of a step that are recorded for its gradient: the carry before it, and its own."""

    before: Tensors
    y: Any


class _BackwardInputs(NamedTuple):
    """The `xs` of a step's gradient."""

    before: Tensors
    x: Tensors
    d_y: Tensors


class _BackwardWeights(NamedTuple):
    """The weights that a step's gradient uses: what the step did, and gradients of the sums there."""

    w: Tensors
    d_sums: Tensors


def while_scan(
    step: ListStep,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    y_specs: list[tf.TensorSpec],
    loop: Loop,
) -> _Results:
    """See `scan`.

    Args:
        step: Pure function that captures no tensors.
        carry, xs, weights: Lists of tensors.
        y_specs: Shapes and dtypes of `y_t`.
        loop: The order of the timesteps, and the weights that they use.
    """
    operands = _Operands(carry, xs, weights)
    results = _Results(carry, y_specs, weights[: loop.sums])
    recorded_specs = [*_specs(carry), *y_specs]
    recorded = _Recorded(carry, y_specs)

    def recording_step(before: Tensors, x: Tensors, w: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        after, y, sums = step(before, x, w)
        return after, [*before, *y], sums

    @custom_gradient
    def record(*arguments: Any) -> tuple[Tensors, Callable]:
        """The loop, returning also the carry that each step began with."""
        tensors = list(arguments)

        def gradient(*upstream: Any) -> Tensors:  # only asked for by the gradient of a gradient
            with tf.GradientTape() as tape:
                tape.watch(_smooth(tensors))
                carry, xs, weights = nested_as(operands, tensors)
                again = while_scan(recording_step, carry, xs, weights, recorded_specs, loop)
            return _gradients(tape, flat(again), tensors, upstream)

        return flat(_loop(recording_step, nested_as(operands, tensors), recorded_specs, loop)), gradient

    @custom_gradient
    def run(*arguments: Any) -> tuple[Tensors, Callable]:
        # Copies, for a gradient of a gradient must find these in the graph that the loop stands in.
        tensors = [tf.identity(tensor) for tensor in arguments]
        last, (carries, ys), sums = nested_as(results._replace(ys=recorded), record(*tensors))
        _, sequences, used = nested_as(operands, tensors)
        backward_inputs = _BackwardInputs(carries, sequences, ys)
        backward_weights = _BackwardWeights(used, sums)

        def backward_step(
            d_after: Tensors, inputs: Tensors, given: Tensors
        ) -> tuple[Tensors, Tensors, Tensors]:
            before, x, d_y = nested_as(backward_inputs, inputs)
            w, d_sums = nested_as(backward_weights, given)
            sources = _Operands(before, x, w)
            with tf.GradientTape() as tape:
                tape.watch(_smooth(flat(sources)))
                outcomes = step(before, x, w)
            gradients = _gradients(tape, flat(outcomes), flat(sources), [*d_after, *d_y, *d_sums])
            d_before, d_x, d_w = nested_as(sources, gradients)
            return d_before, _smooth(d_x), d_w

        def gradient(*upstream: Any) -> Tensors:
            d_last, d_ys, d_sums = nested_as(results, upstream)
            d_first, d_smooth, d_weights = while_scan(
                backward_step,
                d_last,
                flat(backward_inputs._replace(d_y=d_ys)),
                flat(backward_weights._replace(d_sums=d_sums)),
                [tf.TensorSpec(x.shape[1:], x.dtype) for x in _smooth(sequences)],
                dataclasses.replace(
                    loop,
                    indices=(*loop.indices, *loop.indices[: loop.sums]),
                    sums=len(used),
                    reverse=not loop.reverse,
                ),
            )
            remaining = iter(d_smooth)
            d_xs = [next(remaining) if x.dtype.is_floating else None for x in sequences]
            return [*d_first, *d_xs, *d_weights]

        return flat((last, ys, sums)), gradient

    return nested_as(results, run(*flat(operands)))


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


def _loop(step: ListStep, operands: _Operands, y_specs: list[tf.TensorSpec], loop: Loop) -> _Results:
    carry, xs, weights = operands
    timesteps = ops.shape(xs[0])[0]
    carry_specs = _specs(carry)

    def array(tensor: Any) -> tf.TensorArray:
        length, shape = ops.shape(tensor)[0], tensor.shape[1:]
        return tf.TensorArray(tensor.dtype, length, clear_after_read=False, element_shape=shape).unstack(
            tensor
        )

    def total(weight: Any, index: Any) -> tf.TensorArray:
        """What the gradients of a weight are added up in; where sets are separate, they are only written."""
        if index is None:
            return tf.TensorArray(weight.dtype, timesteps, element_shape=weight.shape[1:])
        return array(tf.zeros_like(weight))

    inputs, sets = [array(x) for x in xs], [array(w) for w in weights]
    outputs = [tf.TensorArray(spec.dtype, timesteps, element_shape=spec.shape) for spec in y_specs]
    totals = [total(w, index) for w, index in zip(weights[: loop.sums], loop.indices, strict=False)]

    def single(i: Any, carry: Tensors, outputs: Tensors, totals: Tensors) -> tuple:
        t = timesteps - 1 - i if loop.reverse else i
        places = [t if index is None else index(t) for index in loop.indices]
        used = [w.read(place) for w, place in zip(sets, places, strict=True)]
        carry, y, sums = step(carry, [x.read(t) for x in inputs], used)
        for value, spec in zip(carry, carry_specs, strict=True):
            value.set_shape(spec.shape)  # a loop's variables must not change in what is known of them
        outputs = [output.write(t, value) for output, value in zip(outputs, y, strict=True)]
        added = []
        for total, part, index, place in zip(totals, sums, loop.indices, places, strict=False):
            part = tf.cast(part, total.dtype)
            added.append(total.write(place, part if index is None else total.read(place) + part))
        return i + 1, carry, outputs, added

    def several(*loop_vars: Any) -> tuple:
        for _ in range(loop.steps_per_iteration):
            loop_vars = single(*loop_vars)
        return loop_vars

    def run(body: Callable, loop_vars: tuple, iterations: Any) -> tuple:
        # The bound is also what XLA sizes buffers by.
        return tf.while_loop(
            lambda *_: True, body, loop_vars, maximum_iterations=iterations, parallel_iterations=1
        )

    loop_vars = (tf.constant(0), carry, outputs, totals)
    loop_vars = run(several, loop_vars, timesteps // loop.steps_per_iteration)
    if loop.steps_per_iteration > 1:
        loop_vars = run(single, loop_vars, timesteps % loop.steps_per_iteration)
    _, carry, outputs, totals = loop_vars
    return _Results(carry, [output.stack() for output in outputs], [total.stack() for total in totals])
