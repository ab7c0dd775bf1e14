"""The loop over time: order, unrolling, and derivatives of any order."""

import numpy as np
import pytest
from cases import case_name, pairwise
from conftest import BACKEND, DTYPE, EXACT
from keras import ops

from untied_rnn._loops.scan import scan

OPTIONS = {
    "unroll": [False, True, 1, 2, 3, 7],
    "reverse": [False, True],
    "timesteps": [1, 2, 6],
    "masked": [False, True],
}


def step(carry, x, _=()):
    """Neither linear nor symmetric, so that wrong order or wrong slices change the numbers."""
    (a, b), (p, q, keep) = carry, x
    a, b = ops.tanh(a * p + b), a - q
    if keep is not None:
        a = ops.where(keep, a, carry[0])
    return [a, b], [a * p, b]


def numpy_scan(carry, xs, reverse):
    (a, b), (p, q, keep) = carry, xs
    ys = [None] * len(p)
    for t in reversed(range(len(p))) if reverse else range(len(p)):
        new = np.tanh(a * p[t] + b)
        a, b = (new if keep is None else np.where(keep[t], new, a)), a - q[t]
        ys[t] = (a * p[t], b)
    return (a, b), tuple(np.stack(y) for y in zip(*ys, strict=True))


@pytest.mark.parametrize("case", pairwise(OPTIONS), ids=case_name)
def test_scan_equals_the_numpy_loop(case, rng):
    unroll, reverse, timesteps, masked = case.values()
    carry, xs = rng.normal(size=(2, 3)), list(rng.normal(size=(2, timesteps, 3)))
    xs.append(rng.random((timesteps, 3)) < 0.5 if masked else None)
    last, ys = scan(
        step,
        [ops.convert_to_tensor(c, DTYPE) for c in carry],
        [x if x is None else ops.convert_to_tensor(x, "bool" if x.dtype == bool else DTYPE) for x in xs],
        reverse=reverse,
        unroll=unroll,
    )
    expected_last, expected_ys = numpy_scan(carry, xs, reverse)
    for received, wanted in zip([*last, *ys], [*expected_last, *expected_ys], strict=True):
        np.testing.assert_allclose(ops.convert_to_numpy(received), wanted, **EXACT)


@pytest.mark.skipif(BACKEND == "torch", reason="torch has no loop")
@pytest.mark.parametrize("unroll", [False, 2, 3, True])
def test_unroll_is_the_number_of_steps_per_iteration(unroll):
    """Seen in what is traced: the steps of one iteration, and one more to catch up with the rest."""
    carry, p = [ops.zeros(3)] * 2, ops.zeros((8, 3))
    steps = []

    def counted(carry, x, w):
        steps.append(1)
        return step(carry, x, w)

    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(lambda: scan(counted, carry, [p, p, None], unroll=unroll)).get_concrete_function()
        assert len(steps) == {False: 1, 2: 3, 3: 4, True: 8}[unroll]
    else:
        import jax

        text = str(jax.make_jaxpr(lambda p: scan(step, carry, [p, p, None], unroll=unroll))(p))
        assert f"unroll={8 if unroll is True else int(unroll) or 1}" in text


def scalar(flat, keep, unroll):
    """A scalar of everything that `scan` returns, as a function of everything that it takes."""
    carry = [flat[:3], flat[3:6]]
    xs = [ops.reshape(flat[6:18], (4, 3)), ops.reshape(flat[18:], (4, 3)), keep]
    last, ys = scan(step, carry, xs, unroll=unroll)
    return sum((i + 1) * ops.sum(value**2) for i, value in enumerate([*last, *ys]))


def derivatives(keep, unroll, jit):
    """A function of `flat`: value, its gradient, and the gradient of `|gradient|^2`."""
    import tensorflow as tf

    @tf.function(jit_compile=jit)
    def function(flat):
        with tf.GradientTape() as outer:
            outer.watch(flat)
            with tf.GradientTape() as inner:
                inner.watch(flat)
                value = scalar(flat, keep, unroll)
            gradient = inner.gradient(value, flat)
            norm = tf.reduce_sum(gradient**2)
        return value, gradient, outer.gradient(norm, flat)

    return lambda flat: tuple(map(ops.convert_to_numpy, function(tf.constant(flat))))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="finite differences need float64")
@pytest.mark.parametrize(("unroll", "jit"), [(False, False), (True, False), (3, True)])
def test_first_and_second_order_gradients(unroll, jit, rng):
    flat = rng.normal(size=30)
    keep = ops.convert_to_tensor(rng.random((4, 3)) < 0.5)

    function = derivatives(keep, unroll, jit)
    _, first, second = function(flat)
    # Central differences of the value, then of the gradient that they have confirmed.
    h = 1e-6
    moved = [(function(flat + h * e), function(flat - h * e)) for e in np.eye(30)]
    numeric = [(up[0] - down[0]) / (2 * h) for up, down in moved]
    np.testing.assert_allclose(first, numeric, rtol=1e-6, atol=1e-6)
    numeric = [((up[1] ** 2).sum() - (down[1] ** 2).sum()) / (2 * h) for up, down in moved]
    np.testing.assert_allclose(second, numeric, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has undefined axes")
@pytest.mark.parametrize("unroll", [False, 3])
def test_timesteps_that_are_known_only_at_run_time(unroll, rng):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((3,), "float64")] * 2 + [tf.TensorSpec((None, 3), "float64")])
    def function(a, b, p):
        last, ys = scan(step, [a, b], [p, p, None], unroll=unroll)
        return [*last, *ys]

    for timesteps in (1, 4, 6):
        carry, p = rng.normal(size=(2, 3)), rng.normal(size=(timesteps, 3))
        expected_last, expected_ys = numpy_scan(carry, (p, p, None), reverse=False)
        for received, wanted in zip(function(*carry, p), [*expected_last, *expected_ys], strict=True):
            np.testing.assert_allclose(received, wanted, **EXACT)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA programs are inspected through TensorFlow")
def test_program_does_not_grow_with_time():
    """A loop's program is as long for 300 steps as for 3; an unrolled one is not."""
    import tensorflow as tf

    def program_length(timesteps, unroll):
        function = tf.function(
            lambda flat, p: scan(step, [flat, flat], [p, p, None], unroll=unroll), jit_compile=True
        )
        text = function.experimental_get_compiler_ir(tf.zeros(3), tf.zeros((timesteps, 3)))(stage="hlo")
        return len(text.splitlines())

    assert program_length(300, False) == program_length(3, False)
    assert program_length(30, True) > program_length(3, True)


@pytest.mark.skipif(BACKEND != "jax", reason="the operations of a program are counted through JAX")
@pytest.mark.parametrize("unroll", [False, 3, True])
def test_work_of_the_gradient_is_linear_in_time(unroll):
    """The gradient of a slice of a stack is, taken for itself, a whole stack: T of them are O(T^2)."""
    import jax

    def loss(stack):
        (last,), _ = scan(lambda c, x, w: ([c[0] @ x[0]], [c[0]]), [ops.ones((1, 9))], [stack], unroll=unroll)
        return last.sum()

    def bytes_accessed(timesteps):
        compiled = jax.jit(jax.grad(loss)).lower(ops.ones((timesteps, 9, 9))).compile()
        return compiled.cost_analysis()["bytes accessed"]

    assert bytes_accessed(64) < 1.5 * 4 * bytes_accessed(16)
