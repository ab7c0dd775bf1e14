"""Programs from the literature, once as a list of modules in a Python loop and once as an untied layer."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients
from cases import B, T
from conftest import BACKEND, DTYPE, EXACT
from keras import ops
from ported_cells import (
    IMAGE,
    TOKENS,
    WIDTH,
    A,
    BlockCell,
    CascadeCell,
    CellWithHead,
    DetNetCell,
    LAMPCell,
    M,
    N,
    StrategyCell,
    SupportSelectionCell,
    TISTACell,
    lamp_step,
    soft,
)

from untied_rnn import UntiedDense, UntiedRNN, UntiedSimpleRNN
from untied_rnn.sharing import Blocks, Listed, Periodic


@pytest.fixture(autouse=True)
def _precision():
    """The cells name no `dtype`, as most people's do not."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(DTYPE)
    keras.config.set_dtype_policy(DTYPE)
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


class Loop(keras.Layer):
    """A list of cells that are called one after the other."""

    def __init__(self, cells, start, index=None):
        super().__init__()
        self.cells, self.start = cells, start
        self.index = range(len(cells)) if index is None else index

    def call(self, sequences, initial_state=None):
        states = [ops.convert_to_tensor(s, self.compute_dtype) for s in initial_state or self.start]
        outputs = []
        for t, i in enumerate(self.index):
            output, states = self.cells[i](sequences[:, t], states)
            outputs.append(output)
        return (ops.stack(outputs, axis=1), *states)


def assert_same(layer, loop, pairs, x, rng, initial_state=None, **kwargs):
    """Compares all outputs and gradients, with random weights.

    Args:
        pairs: Function of no argument. Returns pairs of layers: one of `layer`, and a list of `loop`'s
            whose weights it holds stacked.
    """
    given = {} if initial_state is None else {"initial_state": initial_state}
    symbolic = keras.tree.map_structure(lambda array: keras.KerasTensor(array.shape, DTYPE), {"x": x} | given)
    for each in (layer, loop):
        outputs = each(symbolic["x"], **{name: symbolic[name] for name in given}, **kwargs)  # builds it
    cotangents = [rng.normal(size=y.shape) for y in keras.tree.flatten(outputs)]
    parts_of = {}
    for stacked, modules in pairs():
        for stack, *parts in zip(stacked.weights, *(module.weights for module in modules), strict=True):
            for part in filter(lambda part: part.trainable, parts):
                part.assign(ops.convert_to_numpy(part) + 0.1 * rng.normal(size=part.shape))
            stack.assign(np.reshape([ops.convert_to_numpy(part) for part in parts], stack.shape))
            parts_of[id(stack)] = parts

    outputs, gradients = outputs_and_gradients(layer, x, cotangents, **given, **kwargs)
    expected, slopes = outputs_and_gradients(loop, x, cotangents, **given, **kwargs)
    for received, wanted in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(received, wanted, **EXACT)
    for key in ["x", *(f"initial_state {i}" for i in range(len(initial_state or [])))]:
        np.testing.assert_allclose(gradients.pop(key), slopes.pop(key), **EXACT, err_msg=key)
    slope_of = {id(w): slope for w, slope in zip(loop.trainable_weights, slopes.values(), strict=True)}
    for stack, received in zip(layer.trainable_weights, gradients.values(), strict=True):
        wanted = np.reshape([slope_of.pop(id(part)) for part in parts_of[id(stack)]], received.shape)
        np.testing.assert_allclose(received, wanted, **EXACT, err_msg=stack.path)
        assert wanted.any() or "key" in stack.path  # a bias of the keys changes no attention
    assert not slope_of


def assert_cell_unfolds(make, x, start, rng, unroll, constants=(), given=False):
    """Compares `UntiedRNN` of a cell with a list of cells.

    Args:
        start: The states that the list starts from; the layer finds them itself unless they are `given`.
        constants: Pairs of an attribute of the cell and its values at all timesteps.
    """
    layer = UntiedRNN(make(), return_sequences=True, return_state=True, unroll=unroll)
    loop = Loop([make() for _ in range(T)], start)
    loop(keras.KerasTensor(x.shape, DTYPE))
    for name, values in constants:
        for cell, value in zip(loop.cells, values, strict=True):
            getattr(cell, name).assign(value)
    assert_same(layer, loop, lambda: [(layer, loop.cells)], x, rng, start if given else None)


def repeated(y):
    return np.repeat(y[:, None], T, axis=1)


# Algorithms unfolded: the measurements are the input of every timestep.


def test_lista_with_support_selection(rng):
    y = repeated(rng.normal(size=(B, M)))
    constants = [("selected", [0, 1, 1, 2])]
    assert_cell_unfolds(SupportSelectionCell, y, [np.zeros((B, N))], rng, unroll=True, constants=constants)


def test_lamp(rng):
    start = [np.zeros((B, size)) for size in LAMPCell.state_size]
    assert_cell_unfolds(LAMPCell, repeated(rng.normal(size=(B, M))), start, rng, unroll=False)


def test_tista(rng):
    assert_cell_unfolds(TISTACell, repeated(rng.normal(size=(B, M))), [np.zeros((B, N))], rng, unroll=True)


def test_detnet_with_the_loss_of_every_layer(rng):
    h, y = rng.normal(size=(B, N, M)), rng.normal(size=(B, N, 1))
    x = repeated(h.transpose(0, 2, 1) @ np.concatenate([h, y], axis=-1))
    assert_cell_unfolds(DetNetCell, x, [np.zeros((B, M)), np.zeros((B, 2))], rng, unroll=False)


def test_convolutions_with_data_consistency(rng):
    mask = (rng.random((B, *IMAGE, 1)) < 0.5) * 1.0
    x = repeated(np.concatenate([mask * rng.normal(size=(B, *IMAGE, 2)), mask], axis=-1))
    assert_cell_unfolds(CascadeCell, x, [np.ones((B, *IMAGE, 2))], rng, unroll=False)


# Strategies and networks.


def test_deep_hedging(rng):
    assert_cell_unfolds(StrategyCell, rng.normal(size=(B, T, 2)), [np.zeros((B, 1))], rng, unroll=True)


def test_transformer_blocks(rng):
    tokens = [rng.normal(size=(B, TOKENS, WIDTH))]
    assert_cell_unfolds(BlockCell, np.zeros((B, T, 0)), tokens, rng, unroll=False, given=True)


def test_time_varying_rnn_in_segments(rng):
    """TV-RNN: segments of unequal length, each with its own head."""
    index = [0, 0, 1, 2, 2, 2, 3, 4, 4]
    options = {"sharing": Listed(index), "return_sequences": True, "return_state": True, "unroll": False}
    layer = UntiedSimpleRNN(4, output_units=2, **options)
    loop = Loop([CellWithHead(4, 2) for _ in range(5)], [np.zeros((B, 4))], index)
    assert_same(layer, loop, lambda: [(layer, loop.cells)], rng.normal(size=(B, 9, 3)), rng)


class BothWays(keras.Layer):
    def __init__(self, make, index):
        super().__init__()
        self.ways = [Loop([make() for _ in range(max(index) + 1)], None, index) for _ in range(2)]

    def call(self, sequences, initial_state):
        forward, _ = self.ways[0](sequences, [initial_state[0]])
        backward, _ = self.ways[1](ops.flip(sequences, axis=1), [initial_state[1]])
        return ops.concatenate([forward, ops.flip(backward, axis=1)], axis=-1)


def test_both_directions_with_a_period(rng):
    """NN-MI: weights that repeat with the symbols of a period, and a random start."""
    layer = keras.layers.Bidirectional(UntiedSimpleRNN(4, sharing=Periodic(3), return_sequences=True))
    loop = BothWays(lambda: keras.layers.SimpleRNNCell(4), [0, 1, 2, 0, 1])
    start = [rng.normal(size=(B, 4)) for _ in range(2)]

    def pairs():
        ways = zip((layer.forward_layer, layer.backward_layer), loop.ways, strict=True)
        return [(way, cells.cells) for way, cells in ways]

    assert_same(layer, loop, pairs, rng.normal(size=(B, 5, 2)), rng, start)


class Subnets(keras.Layer):
    def __init__(self, subnets):
        super().__init__()
        self.subnets = subnets

    def call(self, x, training=False):
        return ops.stack([net(x[:, t], training=training) for t, net in enumerate(self.subnets)], axis=1)


@pytest.mark.parametrize("training", [False, True])
def test_a_subnet_for_every_time_step(training, rng):
    """DeepBSDE (Han, Jentzen and E, 2018): each time has its own network, batch normalization included."""
    width = 5
    layer = keras.Sequential(
        [
            UntiedDense(width, use_bias=False),
            keras.layers.Reshape((T * width,)),
            keras.layers.BatchNormalization(),
            keras.layers.Reshape((T, width)),
            keras.layers.ReLU(),
            UntiedDense(2),
        ]
    )

    def subnet():
        norm, relu = keras.layers.BatchNormalization(), keras.layers.ReLU()
        dense = keras.layers.Dense(width, use_bias=False), keras.layers.Dense(2)
        return keras.Sequential([dense[0], norm, relu, dense[1]])

    loop = Subnets([subnet() for _ in range(T)])

    def pairs():
        stacked = [part for part in layer.layers if part.weights]
        modules = zip(*([part for part in net.layers if part.weights] for net in loop.subnets), strict=True)
        return list(zip(stacked, modules, strict=True))

    assert_same(layer, loop, pairs, rng.normal(size=(8, T, 2)), rng, training=training)


# One matrix for all timesteps, which the model owns, and the other weights separate.


def lista_cell(model):
    w = model.matrix.kernel

    class Cell(keras.Layer):  # which reads `w` where Keras does not see it
        state_size = N

        def build(self, input_shape):
            constant = keras.initializers.Constant(0.1)
            self.theta = self.add_weight(name="theta", shape=(), initializer=constant)

        def call(self, y, states):
            (x,) = states
            x = soft(x + ops.matmul(y - ops.matmul(x, A.T), w), self.theta)
            return x, [x]

    return Cell()


class LAMPCellOfModel(keras.Layer):
    """Calls a method of the model, which Keras does not see either."""

    state_size = (N, M, 1)

    def __init__(self, correction):
        super().__init__()
        self.correction = correction

    def build(self, input_shape):
        self.alpha = self.add_weight(name="alpha", shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, y, states):
        return lamp_step(y, states, self.correction, self.alpha)


def lamp_cell(model):
    return LAMPCellOfModel(model.corrected)


class SharedMatrix(keras.Model):
    """A matrix, and timesteps that all use it.

    Args:
        make_cell: Function of the model.
        unfold: Function of a function that makes cells. Returns the layer of all timesteps.
    """

    def __init__(self, make_cell, unfold):
        super().__init__()
        self.matrix = keras.layers.Dense(N, use_bias=False)
        self.matrix.build((None, M))
        self.timesteps = unfold(lambda: make_cell(self))

    def corrected(self, residual):
        return self.matrix(residual)

    def call(self, y):
        outputs = self.timesteps(ops.repeat(y[:, None], T, axis=1))
        return outputs[0] if isinstance(outputs, tuple) else outputs


def listed(make):
    cells = [make() for _ in range(T)]
    return Loop(cells, [np.zeros((B, size)) for size in keras.tree.flatten(cells[0].state_size)])


@pytest.mark.parametrize(("cell", "unroll"), [(lista_cell, True), (lamp_cell, False)])
def test_a_matrix_that_all_timesteps_share(cell, unroll, rng):
    model = SharedMatrix(cell, lambda make: UntiedRNN(make(), return_sequences=True, unroll=unroll))
    loop = SharedMatrix(cell, listed)

    def pairs():
        return [(model.matrix, [loop.matrix]), (model.timesteps, loop.timesteps.cells)]

    assert_same(model, loop, pairs, rng.normal(size=(B, M)), rng)


def test_fit_trains_a_matrix_that_all_timesteps_share(rng):
    options = {"return_sequences": True, "unroll": False, "sharing": Blocks(T), "timesteps": T}
    tied = SharedMatrix(lista_cell, lambda make: UntiedRNN(make(), **options))
    of_keras = SharedMatrix(lista_cell, lambda make: keras.layers.RNN(make(), return_sequences=True))
    y, target, w = rng.normal(size=(B, M)), rng.normal(size=(B, T, N)), rng.normal(size=(M, N))
    for model in (tied, of_keras):
        model.matrix.kernel.assign(w)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=BACKEND == "jax")
        model.fit(y, target, batch_size=B, verbose=0)

    def trained(layer):
        return [ops.convert_to_numpy(weight).ravel() for weight in layer.trainable_weights]

    np.testing.assert_allclose(trained(tied.matrix), trained(of_keras.matrix), **EXACT)
    np.testing.assert_allclose(
        np.ravel(trained(tied.timesteps)), np.ravel(trained(of_keras.timesteps)), **EXACT
    )
    assert np.abs(trained(tied.matrix)[0] - w.ravel()).max() > 1e-3
