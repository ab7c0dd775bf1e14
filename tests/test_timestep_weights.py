"""Stacked weights: each timestep's own matrix is what Keras's objects act on."""

import keras
import numpy as np
import pytest
from cases import B, I, U
from conftest import BACKEND, DTYPE
from keras import ops

from untied_rnn import UntiedDense, UntiedLSTM, UntiedRNN
from untied_rnn._weights.draws import initializer_at
from untied_rnn._weights.per_set import TimestepConstraint, TimestepInitializer, TimestepRegularizer

T = 20
RANDOM = [
    "glorot_uniform",
    "glorot_normal",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "random_normal",
    "random_uniform",
    "truncated_normal",
    "variance_scaling",
    "orthogonal",
]


SCALINGS = [
    {"mode": mode, "distribution": distribution, "scale": 0.7}
    for mode in ("fan_in", "fan_out", "fan_avg")
    for distribution in ("uniform", "truncated_normal", "untruncated_normal")
]
# A vector and a matrix that is not square, and weights with axes before the last two.
SHAPES = [(800,), (12, 70), (70, 12), (3, 4, 70), (2, 3, 10, 14)]


class CountingSeeds(keras.random.SeedGenerator):
    """Counts the draws from it."""

    count = 0

    def next(self, ordered=True):
        self.count += 1
        return super().next(ordered)


class Shifted(keras.initializers.RandomNormal):
    """What a user writes: a `__call__` of its own."""

    def __call__(self, shape, dtype=None):
        return 5 + super().__call__(shape, dtype)


def draw(initializer, shape=(T, 30, 40), **options):
    initializer = TimestepInitializer(keras.initializers.get(initializer), **options)
    return ops.convert_to_numpy(initializer(shape, "float32"))


def draw_one(initializer, shape):
    return ops.convert_to_numpy(keras.initializers.get(initializer)(shape, dtype="float32"))


def check_distribution(make, shape):
    """Same spread, shape of the distribution and mean as of separate weights."""
    stack, singles = draw(make(), (T, *shape)), np.stack([draw_one(make(), shape) for _ in range(T)])
    quantiles = [np.quantile(np.abs(values), [0.3, 0.6, 0.95]) for values in (stack, singles)]
    assert stack.std() == pytest.approx(singles.std(), rel=0.03)
    np.testing.assert_allclose(*quantiles, rtol=0.06)
    assert abs(stack.mean()) < 0.05 * stack.std()
    assert len({weight.tobytes() for weight in stack}) == T


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", RANDOM)
def test_distribution_is_that_of_one_weight(name, shape):
    if name == "orthogonal" and len(shape) == 1:
        with pytest.raises(ValueError, match="at least two-dimensional"):
            draw(name, (T, *shape))
    else:
        check_distribution(lambda: name, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", SCALINGS, ids=lambda options: "-".join(map(str, options.values())))
def test_fans_are_those_of_one_weight(options, shape):
    check_distribution(lambda: keras.initializers.VarianceScaling(**options), shape)


@pytest.mark.skipif(
    not hasattr(keras.initializers.VarianceScaling(), "input_axes"), reason="earlier Keras knows no such axes"
)
def test_given_axes_of_the_fans_are_those_of_one_weight():
    def make():
        return keras.initializers.VarianceScaling(mode="fan_in", input_axes=[1], output_axes=[0])

    check_distribution(make, (12, 70))


@pytest.mark.parametrize("shape", [(30, 30), (30, 12), (12, 30), (3, 4, 30), (3, 4, 5)], ids=str)
def test_orthogonal_matrices_are_orthogonal(shape):
    stack = draw(keras.initializers.Orthogonal(gain=2.0), (T, *shape))
    assert stack.shape == (T, *shape)
    for matrix in stack.reshape(T, -1, shape[-1]):
        matrix = matrix if len(matrix) <= len(matrix.T) else matrix.T
        np.testing.assert_allclose(matrix @ matrix.T, 4 * np.eye(len(matrix)), atol=1e-5)


@pytest.mark.parametrize("shape", [(5, 5), (6, 4), (4, 6), (2, 3, 7)], ids=str)
@pytest.mark.parametrize("name", RANDOM)
def test_a_stack_of_one_weight_is_what_keras_draws(name, shape):
    initializer = type(keras.initializers.get(name))(seed=7)
    expected = ops.convert_to_numpy(initializer_at(initializer, 0)(shape, dtype="float32"))
    np.testing.assert_allclose(draw(initializer, (1, *shape))[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RANDOM)
def test_keras_initializers_draw_all_weights_in_one_pass(name):
    seeds = CountingSeeds(1)
    subclass = type("Subclass", (type(keras.initializers.get(name)),), {})
    stack = draw(subclass(seed=seeds), (T, 5, 6))
    assert seeds.count == 1
    assert len({matrix.tobytes() for matrix in stack}) == T


def test_initializers_of_ones_own_draw_each_weight():
    seeds = CountingSeeds(1)
    stack = draw(Shifted(seed=seeds), (T, 5, 6))
    assert seeds.count == T
    assert stack.mean() == pytest.approx(5, abs=0.1)
    shapes = []

    def initializer(shape, dtype):
        shapes.append(shape)
        return ops.full(shape, len(shapes), dtype)

    np.testing.assert_array_equal(
        draw(initializer, (2, 3), sets=np.array([1, 4]), total=6), [[1] * 3, [2] * 3]
    )
    assert shapes == [(3,), (3,)]  # in their order, and none that is not wanted


@pytest.mark.parametrize("cls", [keras.initializers.HeNormal, keras.initializers.Orthogonal, Shifted])
@pytest.mark.parametrize("seed", [3, None])
def test_values_of_a_set_do_not_depend_on_which_are_drawn(cls, seed):
    initializer = cls(seed=seed)
    stack = draw(initializer, (5, 4, 6))
    for sets in ([0, 1, 3], [2, 4], [4]):
        part = draw(initializer, (len(sets), 4, 6), sets=np.array(sets), total=5)
        np.testing.assert_array_equal(part, stack[sets])


@pytest.mark.parametrize("seed", [3, None])
def test_frozen_and_trained_weights_do_not_repeat_each_other(seed):
    layer = UntiedDense(3, kernel_initializer=keras.initializers.HeNormal(seed=seed), frozen_timesteps=[1, 2])
    layer.build((None, 5, 4))
    values = [ops.convert_to_numpy(w).ravel() for w in (layer.kernel, layer.weights_at(1)["kernel"])]
    assert len(np.unique(np.concatenate(values))) == 4 * 3 * 4
    free = UntiedDense(3, kernel_initializer=layer.kernel_initializer)
    free.build((None, 5, 4))
    for t in range(5):
        np.testing.assert_array_equal(layer.weights_at(t)["kernel"], free.weights_at(t)["kernel"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", DTYPE])
@pytest.mark.parametrize("name", ["glorot_uniform", "random_normal", "truncated_normal", "ones", "identity"])
def test_dtype(name, dtype):
    stack = TimestepInitializer(keras.initializers.get(name))((3, 4, 4), dtype)
    one = keras.initializers.get(name)((4, 4), dtype=dtype)
    assert keras.backend.standardize_dtype(stack.dtype) == keras.backend.standardize_dtype(one.dtype)


def test_only_forget_gates_start_with_ones():
    layer = UntiedLSTM(50, timesteps=T, bias_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=3))
    layer.build((None, T, 2))
    i, f, g, o = np.split(ops.convert_to_numpy(layer.bias), 4, axis=-1)
    np.testing.assert_array_equal(f, 1)
    assert np.std([i, g, o]) == pytest.approx(0.3, rel=0.05)
    assert len(np.unique([i, g, o])) > 0.99 * 3 * T * 50  # few are equal by chance


SEEDED = [
    keras.initializers.GlorotUniform,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Orthogonal,
    Shifted,
]


@pytest.mark.parametrize("cls", SEEDED)
def test_integer_seed_is_reproducible_and_differs_between_timesteps(cls):
    np.testing.assert_array_equal(draw(cls(seed=1)), draw(cls(seed=1)))
    seeds = [1, 2, 3, -1, 2**32]
    matrices = {matrix.tobytes() for seed in seeds for matrix in draw(cls(seed=seed))}
    assert len(matrices) == len(seeds) * T  # neighbouring seeds share no matrix either


def test_unseeded_initializers_follow_the_global_seed():
    draws = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        draws.append(draw("glorot_uniform"))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])


@pytest.mark.parametrize("cls", SEEDED)
def test_seed_generator_moves_on(cls):
    initializer = cls(seed=keras.random.SeedGenerator(1))
    matrices = [*draw(initializer, (T, 5, 6)), *draw(initializer, (T, 5, 6))]
    assert len({matrix.tobytes() for matrix in matrices}) == 2 * T


def test_fixed_initializers():
    np.testing.assert_array_equal(draw("identity", (3, 4, 4)), np.stack([np.eye(4)] * 3))
    np.testing.assert_array_equal(draw(keras.initializers.Constant(0.5), (3, 4)), np.full((3, 4), 0.5))
    np.testing.assert_array_equal(draw(keras.initializers.Constant([1, 2]), (3, 2)), [[1, 2]] * 3)
    np.testing.assert_array_equal(draw("zeros", (3, 4)), np.zeros((3, 4)))
    np.testing.assert_array_equal(draw(np.eye(4, dtype="float32"), (3, 4, 4)), np.stack([np.eye(4)] * 3))
    counted = iter(range(9))
    stack = draw(lambda shape, dtype: ops.full(shape, next(counted), dtype), (3, 2))
    np.testing.assert_array_equal(stack, [[0, 0], [1, 1], [2, 2]])


# Cells.


class Counted(keras.layers.SimpleRNNCell):
    """Counts the cells that are built."""

    built_cells = 0

    def build(self, input_shape):
        type(self).built_cells += 1
        super().build(input_shape)


class Assigned(Counted):
    """Assigns to a weight that Keras has drawn."""

    def build(self, input_shape):
        super().build(input_shape)
        self.recurrent_kernel.assign(self.recurrent_kernel + 5)


class Renamed(Counted):
    """Draws weights from something else than is asked for."""

    def add_weight(self, *args, initializer=None, **options):
        return super().add_weight(*args, initializer=lambda *a, **k: 5 + initializer(*a, **k), **options)


class OwnFunction(Counted):
    """Draws one weight from a function of its own, which only one cell can call."""

    def build(self, input_shape):
        super().build(input_shape)
        scale = keras.random.uniform((self.units,), 4, 6)
        self.scale = self.add_weight(
            name="scale", shape=(self.units,), initializer=lambda shape, dtype: ops.cast(scale, dtype)
        )

    def call(self, inputs, states, training=False):
        output, states = Counted.call(self, inputs, states, training)
        return output * self.scale, states


class Variables(Counted):
    """Has a variable that it did not ask for with `add_weight`."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = keras.Variable(keras.random.uniform((self.units,), 4, 6), name="scale")

    call = OwnFunction.call


CELL_BY_CELL = {
    Counted: None,
    Assigned: "recurrent_kernel",
    Renamed: "kernel",
    OwnFunction: "scale",
    Variables: "scale",
}


@pytest.mark.parametrize("cls", CELL_BY_CELL)
def test_cells_are_built_only_for_weights_that_keras_does_not_draw(cls, monkeypatch):
    monkeypatch.setattr(cls, "built_cells", 0)
    layer = UntiedRNN(cls(U), timesteps=20)
    layer.build((None, 20, I))
    name = CELL_BY_CELL[cls]
    assert cls.built_cells == (1 if name is None else 1 + 20)  # the template, and one for each weight set
    if name is not None:
        values = ops.convert_to_numpy(getattr(layer, name))
        assert values.min() > 3
        assert len(np.unique(values)) > values.size / 2
    np.testing.assert_array_equal(layer.bias, 5.0 if cls is Renamed else 0.0)
    assert len(np.unique(ops.convert_to_numpy(layer.kernel))) == 20 * I * U


class CountedLSTM(keras.layers.LSTMCell):
    made = 0

    def __init__(self, *args, **kwargs):
        type(self).made += 1
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize(
    ("bias", "fast"),
    [
        ("zeros", True),
        (keras.initializers.RandomNormal(stddev=0.1, seed=3), True),
        (keras.initializers.HeNormal(seed=3), False),
    ],
)
def test_biases_of_an_lstm_cell(bias, fast):
    stacks = []
    for _ in range(2):
        CountedLSTM.made = 0
        layer = UntiedRNN(CountedLSTM(50, bias_initializer=bias), timesteps=20)
        layer.build((None, 20, I))
        assert (CountedLSTM.made < 20) == fast
        stacks.append(ops.convert_to_numpy(layer.bias))
    i, f, g, o = np.split(stacks[0], 4, axis=-1)
    np.testing.assert_array_equal(f, 1)
    if bias == "zeros":
        np.testing.assert_array_equal([i, g, o], 0)
        return
    assert len(np.unique(i)) > 0.99 * i.size  # few are equal by chance
    np.testing.assert_array_equal(*stacks)
    if isinstance(bias, keras.initializers.HeNormal):  # of a part for `i`, and one for `g` and `o`
        assert np.std(i) == pytest.approx(np.sqrt(2 / 50), rel=0.1)
        assert np.std([g, o]) == pytest.approx(np.sqrt(2 / 100), rel=0.1)
    without = UntiedRNN(keras.layers.LSTMCell(50, unit_forget_bias=False), timesteps=2)
    without.build((None, 2, I))
    np.testing.assert_array_equal(without.bias, 0)


def test_a_generator_of_seeds_gives_each_timestep_its_own_weights():
    seed = keras.random.SeedGenerator(1)
    layer = UntiedRNN(
        keras.layers.GRUCell(U, kernel_initializer=keras.initializers.HeNormal(seed=seed)), timesteps=T
    )
    layer.build((None, T, I))
    assert len(np.unique(ops.convert_to_numpy(layer.kernel))) == T * I * 3 * U


@pytest.mark.skipif(BACKEND != "tensorflow", reason="`tf.function` is TensorFlow's")
@pytest.mark.parametrize("cell", [keras.layers.LSTMCell(U), Assigned(U)])
def test_weights_are_drawn_outside_of_functions(cell, rng):
    import tensorflow as tf

    layer = UntiedRNN(cell)
    output = tf.function(lambda x: layer(x))(tf.constant(rng.normal(size=(B, T, I)), "float32"))
    assert np.all(np.isfinite(output))
    assert len(np.unique(ops.convert_to_numpy(layer.kernel))) == layer.kernel.value.numpy().size


# Regularizers and constraints.

REGULARIZERS = [
    keras.regularizers.L1(0.1),
    keras.regularizers.L2(0.1),
    keras.regularizers.L1L2(0.1, 0.2),
    keras.regularizers.OrthogonalRegularizer(0.1),
    lambda w: 0.1 * ops.max(ops.abs(w)),
]


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_regularizer_adds_up_over_timesteps(regularizer, rng):
    stack = rng.normal(size=(3, 4, 5)).astype("float32")

    def value(regularizer, weight):
        return float(ops.convert_to_numpy(regularizer(weight)))

    expected = sum(value(regularizer, ops.convert_to_tensor(matrix)) for matrix in stack)
    variable = keras.Variable(stack)
    assert value(TimestepRegularizer(regularizer), variable) == pytest.approx(expected, rel=1e-5)


CONSTRAINTS = [
    keras.constraints.MaxNorm(0.5, axis=0),
    keras.constraints.MinMaxNorm(0.2, 0.4, axis=1),
    keras.constraints.UnitNorm(axis=0),
    keras.constraints.NonNeg(),
]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_constraint_projects_each_timestep(constraint, rng):
    stack = rng.normal(size=(3, 4, 5)).astype("float32")
    expected = np.stack([ops.convert_to_numpy(constraint(ops.convert_to_tensor(m))) for m in stack])
    received = TimestepConstraint(constraint)(keras.Variable(stack))
    np.testing.assert_allclose(ops.convert_to_numpy(received), expected, rtol=1e-6)
