"""Optimizers of stacked weights, against the same optimizers of separate variables for each timestep."""

import pathlib
import re
from itertools import chain

import keras
import numpy as np
import pytest
from cases import randomised
from conftest import BACKEND
from keras import ops

from untied_rnn import PerTimestep, UntiedDense

PAGE = pathlib.Path(__file__).parent.parent / "docs/optimizers.md"
B, T, I, U = 8, 3, 2, 4  # noqa: E741 (the letters of the formulas)
CLOSE = {"rtol": 1e-5, "atol": 2e-6}  # of float32: Keras's Muon does not run in float64
HAS_MUON = hasattr(keras.optimizers, "ScheduleFreeAdamW")
needs_muon = pytest.mark.skipif(not HAS_MUON, reason="Muon has errors in earlier versions of Keras")


def numpy(variables):
    return [ops.convert_to_numpy(variable) for variable in variables]


def separate(stack):
    """A variable for each weight set, under the name of the stack."""
    (values,) = numpy([stack])
    return [keras.Variable(value, name=stack.name) for value in values]


def apply(optimizer, gradients, variables):
    optimizer.apply([g if g is None else ops.convert_to_tensor(g, "float32") for g in gradients], variables)


def stateless_apply(optimizer, gradients, variables):
    """As `fit` does on JAX, where `LossScaleOptimizer` has no other way."""
    if not optimizer.built:
        optimizer.build(variables)
    state = optimizer.variables
    gradients = [ops.convert_to_tensor(g, "float32") for g in gradients]
    new = optimizer.stateless_apply([v.value for v in state], gradients, [v.value for v in variables])
    for variable, value in zip([*variables, *state], chain(*new), strict=True):
        variable.assign(value)


class Pair:
    """A stack of kernels, one of biases and a third variable; and the same values apart."""

    def __init__(self, rng, **options):
        self.layer = UntiedDense(U, timesteps=T, **options)
        self.layer.build((None, T, I))
        randomised(self.layer, rng)
        head = rng.normal(size=(U, 2))
        self.together = [self.layer.kernel, self.layer.bias, keras.Variable(head, dtype="float32")]
        self.apart = [
            separate(self.layer.kernel),
            separate(self.layer.bias),
            [keras.Variable(head, dtype="float32")],
        ]

    def train(self, ours, theirs, rng, steps=4, without=()):
        """Steps with gradients whose size differs between timesteps a hundredfold; none for `without`."""
        sizes = 10.0 ** np.arange(-1, T - 1)
        separately = list(chain(*self.apart))
        for _ in range(steps):
            gradients = [rng.normal(size=v.shape) for v in self.together]
            gradients[0] *= sizes[:, None, None]
            gradients[1] *= sizes[:, None]
            gradients = [None if i in without else g for i, g in enumerate(gradients)]
            apply(ours, gradients, self.together)
            parts = [
                [g] if v is self.together[-1] else [None] * T if g is None else list(g)
                for g, v in zip(gradients, self.together, strict=True)
            ]
            apply(theirs, list(chain(*parts)), separately)
        ours.finalize_variable_values(self.together)
        theirs.finalize_variable_values(separately)

    def difference(self):
        apart = [np.stack(numpy(group)) for group in self.apart]
        apart[-1] = apart[-1][0]
        return max(np.abs(a - b).max() for a, b in zip(numpy(self.together), apart, strict=True))


# The table of the page.


def table():
    """The entries: their code, and what they say that a stack is."""
    if not PAGE.exists():
        return []
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", PAGE.read_text(), flags=re.MULTILINE)
    return [(code, claim) for cell, claim in rows for code in re.findall(r"`(.+?)`", cell)]


def made(code):
    name = code.split("(")[0]
    if not hasattr(keras.optimizers, name) or (name == "Muon" and not HAS_MUON):
        pytest.skip("this version of Keras lacks it, or has errors in it")
    optimizer = eval(code, dict(vars(keras.optimizers)))
    optimizer.learning_rate = 0.1
    return optimizer


@pytest.mark.parametrize(("code", "claim"), table())
def test_table_says_what_a_stack_is(code, claim, rng):
    pair = Pair(rng)
    pair.train(made(code), made(code), rng)
    assert claim in ("T variables", "one variable")
    if claim == "T variables":
        assert pair.difference() < 2e-6
    else:
        assert pair.difference() > 1e-2


@pytest.mark.parametrize("code", [code for code, _ in table()])
def test_wrapped_a_stack_is_t_variables(code, rng):
    pair = Pair(rng)
    pair.train(PerTimestep(made(code)), made(code), rng)
    assert pair.difference() < 2e-6


@pytest.mark.skipif(not PAGE.exists(), reason="needs a whole checkout")
def test_table_has_all_optimizers_of_keras():
    classes = (v for v in vars(keras.optimizers).values() if isinstance(v, type))
    names = {cls.__name__ for cls in classes if issubclass(cls, keras.optimizers.Optimizer)}
    # These have no step: they hand variables on to others.
    others = {"Optimizer", "MultiOptimizer", "LossScaleOptimizer"}
    assert names - others <= {code.split("(")[0] for code, _ in table()}


# What a wrapper hands on.


@pytest.mark.parametrize(
    "options", [{}, {"use_ema": True, "ema_overwrite_frequency": 1}], ids=["", "averages"]
)
def test_constraint_and_weights_without_gradient(options, rng):
    """The bias gets no gradient, but averages overwrite it; the kernel is constrained after that."""
    pair = Pair(rng, kernel_constraint=keras.constraints.UnitNorm(axis=(0, 1)), bias_constraint="non_neg")
    for group, stack in zip(pair.apart, pair.together, strict=False):
        for variable in group:
            variable.constraint = stack.constraint and stack.constraint.constraint
    before = numpy(pair.together)
    ours, theirs = (keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=1.0, **options) for _ in range(2))
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        pair.train(PerTimestep(ours), theirs, rng, without=[1])
    assert pair.difference() < 2e-6
    after = numpy(pair.together)
    if not options:  # averages of constrained weights are the last values, and not constrained
        np.testing.assert_allclose(np.linalg.norm(after[0], axis=(1, 2)), 1, rtol=1e-5)
    np.testing.assert_array_equal(after[1], before[1])


def test_subset_of_the_variables(rng):
    """As a training loop of one's own gives them, in another order; averages move the others, too."""
    pair = Pair(rng)
    optimizers = [keras.optimizers.SGD(0.1, clipnorm=1.0, use_ema=True) for _ in range(2)]
    ours, theirs = PerTimestep(optimizers[0]), optimizers[1]
    pair.train(ours, theirs, rng, steps=1)
    kernel, bias = rng.normal(size=(T, I, U)), rng.normal(size=(T, U))
    apply(ours, [bias, kernel], [pair.together[1], pair.together[0]])
    apply(theirs, [*bias, *kernel], [*pair.apart[1], *pair.apart[0]])
    assert pair.difference() < 2e-6


@pytest.mark.parametrize("by", ["var_names", "var_list"])
def test_exclusion_from_weight_decay(by, rng):
    pair = Pair(rng)
    ours, theirs = PerTimestep(keras.optimizers.AdamW(0.1, 0.5)), keras.optimizers.AdamW(0.1, 0.5)
    given = {"var_names": (["bias"],) * 2, "var_list": ([pair.layer.bias], pair.apart[1])}[by]
    ours.exclude_from_weight_decay(**{by: given[0]})
    theirs.exclude_from_weight_decay(**{by: given[1]})
    pair.train(ours, theirs, rng)
    assert pair.difference() < 2e-6


@needs_muon
def test_muon_gets_kernels_and_no_biases(rng):
    pair = Pair(rng)
    gradients = [np.ones(v.shape) for v in pair.together]
    before = numpy(pair.together)
    apply(PerTimestep(keras.optimizers.Muon(0.1, rms_rate=None)), gradients, pair.together)
    kernel, bias, _ = (after - old for after, old in zip(numpy(pair.together), before, strict=True))
    np.testing.assert_allclose(bias, -0.1, rtol=1e-2)  # Adam's first step
    # All elements alike, whose sum of squares Muon makes about one for each timestep.
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=(1, 2)), 0.1, rtol=0.4)


def test_rules_see_names_and_paths_of_the_stack(rng):
    seen = []

    class Recorder(keras.optimizers.SGD):
        def build(self, variables):
            super().build(variables)
            seen.extend((v.name, v.path, tuple(v.shape), v.dtype) for v in variables)

    model = keras.Sequential([keras.Input((T, I)), UntiedDense(U, name="mine")], name="whole")
    with keras.name_scope("elsewhere"):
        PerTimestep(Recorder()).build(model.trainable_variables)
    kernel, bias = model.trainable_variables
    assert "mine" in kernel.path
    expected = [("kernel", kernel.path, (I, U), "float32")] * T + [("bias", bias.path, (U,), "float32")] * T
    assert seen == expected


def test_scaled_losses(rng):
    """A loss scale, fixed or of `LossScaleOptimizer`, which skips steps whose gradients are not finite."""
    step = stateless_apply if BACKEND == "jax" else apply
    pair = Pair(rng)
    fixed = PerTimestep(keras.optimizers.SGD(0.1, clipnorm=1.0, loss_scale_factor=8.0))
    assert float(fixed.scale_loss(1.0)) == 8.0
    scaled = keras.optimizers.LossScaleOptimizer(fixed, initial_scale=4.0)
    plain = keras.optimizers.SGD(0.1, clipnorm=1.0)
    gradients = [rng.normal(size=v.shape) for v in pair.together]
    step(scaled, [4.0 * g for g in gradients], pair.together)
    apply(plain, [*gradients[0], *gradients[1], gradients[2]], list(chain(*pair.apart)))
    assert pair.difference() < 2e-6
    gradients[0][1] = np.inf
    before = numpy(pair.together)
    step(scaled, gradients, pair.together)
    for old, new in zip(before, numpy(pair.together), strict=True):
        np.testing.assert_array_equal(new, old)
    assert float(scaled.scale_loss(1.0)) == 2.0


def test_weights_of_the_optimizer(rng):
    pair, optimizer = Pair(rng), PerTimestep("adam")
    pair.train(optimizer, keras.optimizers.Adam(), rng)
    state = numpy(optimizer.variables)
    other = PerTimestep({"class_name": "Adam", "config": {"learning_rate": 0.5}})
    other.build(pair.together)
    other.set_weights(state)
    for ours, theirs in zip(numpy(other.variables), state, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert int(other.iterations) == 4


def test_errors():
    with pytest.raises(ValueError, match=r"Expected .* LossScaleOptimizer\(PerTimestep\(optimizer\)\)"):
        PerTimestep(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()))
    with pytest.raises(ValueError, match="none_such"):
        PerTimestep("none_such")
    with pytest.raises(ValueError, match="Received: 1 gradients, 0 variables"):
        PerTimestep("sgd").apply([np.zeros((2, 2))])
    optimizer, layers = PerTimestep("sgd"), [UntiedDense(U, timesteps=T, use_bias=False) for _ in range(2)]
    for layer in layers:
        layer.build((None, T, I))
    optimizer.build([layers[0].kernel])
    with pytest.raises(ValueError, match="Unknown variable"):
        apply(optimizer, [np.zeros((T, I, U))], [layers[1].kernel])
