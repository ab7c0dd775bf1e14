"""The loop over time, on every backend.

`scan` extends the contract of `jax.lax.scan` by weights, of which several timesteps may share one set. It is
not `keras.ops.scan`, because that one, on TensorFlow, cannot be differentiated twice under XLA and has no
unrolling, and because the gradient of `stack[index]` within a loop is, taken for itself, a whole stack for
each timestep: O(timesteps^2).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import keras
from keras import ops

from untied_rnn._loops.custom_gradient import vjp
from untied_rnn._loops.loop import ListStep, Loop
from untied_rnn._loops.nested import flat, nested_as
from untied_rnn._types import Index, Nested, Shape, Tensor, Tensors


@dataclass(frozen=True)
class Stack:
    """Weights of which each timestep uses one.

    Attributes:
        values: `(sets, ...)`.
        index: The place in the stack that timestep `t` uses, for an integer `t` of Python or a tensor. `None`
            is `t`.
    """

    values: Tensor
    index: Index | None = None


@dataclass(frozen=True)
class Made:
    """Weights of which each timestep makes its own, from what it reads of several stacks.

    Attributes:
        stacks: The stacks.
        make: Pure function of what one timestep reads of each.
    """

    stacks: tuple[Stack, ...]
    make: Callable[..., Tensor]


def scan(
    step: Callable[..., tuple],
    carry: Nested,
    xs: Nested,
    weights: Nested = (),
    *,
    reverse: bool = False,
    unroll: bool | int = False,
    y_shapes: Sequence[Shape] | None = None,
    sum_gradients: bool = False,
) -> tuple:
    """Runs `step(carry, x_t, w_t) -> (carry, y_t)`, `w_t` being the weights that timestep `t` uses.

    Carry, `xs`, `y_t` and weights are structures of tensors: lists, named tuples, a single tensor. Where one
    holds `None`, `step` sees `None`.

    Args:
        step: Pure function, which gets all tensors as arguments and captures none. All `y_t` have the dtype
            of the carry.
        carry: What one step hands to the next.
        xs: Tensors of shape `(timesteps, ...)`.
        weights: `Stack`s and `Made`s, which may be of another dtype than the carry.
        reverse: Whether to run from the last timestep to the first (`ys` keeps the order of `xs`).
        unroll: `True` writes all steps out, without a loop; an integer is the number of steps that
            one iteration of the loop runs.
        y_shapes: Shapes of the tensors in `y_t`, in their order, which TensorFlow's loop must know before it
            runs. Those of `carry` if not given.
        sum_gradients: Whether `step` returns gradients of the weights as well, in a structure like theirs.
            They are added up over the timesteps of each set. Not with `unroll=True`.

    Returns:
        The last carry, `ys` with a leading axis of timesteps, and with `sum_gradients` the gradients of the
        stacks, in the order of `stacks_of(weights)`.
    """
    list_step = _ListStep(step, carry, xs, weights, sum_gradients)
    stacks, tensors = stacks_of(weights), flat(xs)
    values = [stack.values for stack in stacks]
    timesteps = tensors[0].shape[0]
    loop = Loop(
        indices=tuple(stack.index for stack in stacks),
        sums=len(stacks) if sum_gradients else 0,
        reverse=reverse,
        steps_per_iteration=timesteps if unroll is True else max(int(unroll), 1),
    )
    last, ys, sums = _run(list_step, flat(carry), tensors, values, loop, unroll is True, y_shapes)
    results = nested_as(carry, last), nested_as(list_step.y, ys)
    return (*results, sums) if sum_gradients else results


def stacks_of(weights: Nested) -> list[Stack]:
    """The stacks that weights are made of."""
    return [
        stack
        for weight in flat(weights)
        for stack in (weight.stacks if isinstance(weight, Made) else (weight,))
    ]


def with_values(weights: Nested, values: Tensors) -> Nested:
    """The weights, made of other values."""
    remaining = iter(values)

    def changed(weight: Stack | Made) -> Stack | Made:
        if isinstance(weight, Stack):
            return replace(weight, values=next(remaining))
        return replace(weight, stacks=tuple(replace(one, values=next(remaining)) for one in weight.stacks))

    return nested_as(weights, map(changed, flat(weights)))


class _ListStep:
    """A step on structures as one on lists, which remembers the structure of `y_t`.

    It makes the weights of the timestep from what that reads, and gradients of what was read from the
    gradients of the weights.
    """

    def __init__(
        self, step: Callable[..., tuple], carry: Nested, xs: Nested, weights: Nested, sum_gradients: bool
    ):
        self.step, self.y, self.sum_gradients = step, None, sum_gradients
        self.carry, self.xs, self.weights = (_places(nested) for nested in (carry, xs, weights))
        # For each weight, how many stacks it is made of, and how.
        self.made = [
            (len(weight.stacks), weight.make) if isinstance(weight, Made) else (1, None)
            for weight in flat(weights)
        ]

    def __call__(self, carry: Tensors, xs: Tensors, read: Tensors) -> tuple[Tensors, Tensors, Tensors]:
        weights, pullbacks, remaining = [], [], iter(read)
        for number, make in self.made:
            parts = list(itertools.islice(remaining, number))
            weight, pullback = self._weight(make, parts)
            weights.append(weight)
            pullbacks.append(pullback)
        given = nested_as(self.carry, carry), nested_as(self.xs, xs), nested_as(self.weights, weights)
        after, y, *sums = self.step(*given)
        self.y = _places(y)
        gradients = zip(pullbacks, flat(sums), strict=True) if sums else ()
        return flat(after), flat(y), [d for pullback, d_weight in gradients for d in pullback(d_weight)]

    def _weight(
        self, make: Callable[..., Tensor] | None, parts: Tensors
    ) -> tuple[Tensor, Callable[[Tensor], Tensors]]:
        """A weight, and the gradients of its parts for the gradient of it."""
        if make is None:
            return parts[0], lambda d_weight: [d_weight]
        return vjp(make, parts) if self.sum_gradients else (make(*parts), lambda d_weight: [])


def _places(nested: Nested) -> Nested:
    """The structure without its tensors, which must not outlive what they are computed in."""
    return keras.tree.map_structure(lambda leaf: None if leaf is None else True, nested)


def _run(
    step: ListStep,
    carry: Tensors,
    xs: Tensors,
    weights: Tensors,
    loop: Loop,
    unroll: bool,
    y_shapes: Sequence[Shape] | None,
) -> tuple[Tensors, Tensors, Tensors]:
    """`scan` of lists."""
    backend = keras.backend.backend()
    # Torch has no loop of its own to compile into.
    if backend == "torch" or (backend == "tensorflow" and unroll):
        return _written_out(step, carry, xs, weights, loop)
    if backend == "jax":  # written out here as well: the gradient of a slice would be a dense stack
        from untied_rnn._loops.jax_loop import lax_scan

        return lax_scan(step, carry, xs, weights, loop)
    import tensorflow as tf

    from untied_rnn._loops.tensorflow_loop import while_scan

    shapes = [c.shape for c in carry] if y_shapes is None else y_shapes
    y_specs = [tf.TensorSpec(shape, carry[0].dtype) for shape in shapes]
    return while_scan(step, carry, xs, weights, y_specs, loop)


def _written_out(
    step: ListStep, carry: Tensors, xs: Tensors, weights: Tensors, loop: Loop
) -> tuple[Tensors, Tensors, Tensors]:
    timesteps = xs[0].shape[0]
    # Unstacked once, so that the gradient of the stack is one stacking of T slices.
    slices = [ops.unstack(x, timesteps) for x in xs]
    sets = [ops.unstack(w, w.shape[0]) for w in weights]
    ys: list[Tensors] = []
    for t in reversed(range(timesteps)) if loop.reverse else range(timesteps):
        places = [t if index is None else int(index(t)) for index in loop.indices]
        used = [w[place] for w, place in zip(sets, places, strict=True)]
        carry, y, _ = step(carry, [x[t] for x in slices], used)
        ys.append(y)
    if loop.reverse:
        ys.reverse()
    return carry, [ops.stack(y) for y in zip(*ys, strict=True)], []
