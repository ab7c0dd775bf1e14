"""Stacked weights: each timestep's own matrix is what Keras's objects act on."""

import keras
import numpy as np
import pytest
from keras import ops

from untied_rnn.timestep_weights import TimestepConstraint, TimestepInitializer, TimestepRegularizer

T = 20
RANDOM = [
    "glorot_uniform", "glorot_normal", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform",
    "random_normal", "random_uniform", "truncated_normal", "variance_scaling", "orthogonal",
]  # fmt: skip


def draw(initializer, shape=(T, 30, 40)):
    return ops.convert_to_numpy(TimestepInitializer(keras.initializers.get(initializer))(shape, "float32"))


@pytest.mark.parametrize("name", RANDOM)
def test_distribution_is_that_of_one_matrix(name):
    """Same mean and spread as the initializer gives one (30, 40) matrix, over 20 draws of it."""
    stack = draw(name)
    singles = np.stack(
        [ops.convert_to_numpy(keras.initializers.get(name)((30, 40), dtype="float32")) for _ in range(T)]
    )
    assert stack.std() == pytest.approx(singles.std(), rel=0.02)
    assert abs(stack.mean()) < 0.01
    assert len({matrix.tobytes() for matrix in stack}) == T


def test_orthogonal_matrices_are_orthogonal():
    for matrix in draw("orthogonal", (T, 30, 30)):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(30), atol=1e-5)


@pytest.mark.parametrize("cls", [keras.initializers.GlorotUniform, keras.initializers.Orthogonal])
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


def test_seed_generator_moves_on():
    stack = draw(keras.initializers.GlorotUniform(seed=keras.random.SeedGenerator(1)))
    assert len({matrix.tobytes() for matrix in stack}) == T


def test_fixed_initializers():
    np.testing.assert_array_equal(draw("identity", (3, 4, 4)), np.stack([np.eye(4)] * 3))
    np.testing.assert_array_equal(draw(keras.initializers.Constant(0.5), (3, 4)), np.full((3, 4), 0.5))
    np.testing.assert_array_equal(draw(np.eye(4, dtype="float32"), (3, 4, 4)), np.stack([np.eye(4)] * 3))
    counted = iter(range(9))
    stack = draw(lambda shape, dtype: ops.full(shape, next(counted), dtype), (3, 2))
    np.testing.assert_array_equal(stack, [[0, 0], [1, 1], [2, 2]])


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
