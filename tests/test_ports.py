"""Programs from the literature, once as a list of modules in a Python loop and once as an untied layer."""

import keras
import numpy as np
import pytest
from autodiff import outputs_and_gradients, to_numpy
from cases import B, T
from conftest import BACKEND, DTYPE, EXACT
from keras import ops

from untied_rnn import UntiedDense, UntiedRNN, UntiedSimpleRNN

M, N = 3, 5  # of the dictionary `A` in `y = A x`
A = (np.random.default_rng(0).normal(size=(M, N)) / np.sqrt(M)).astype(DTYPE)
TOKENS, WIDTH = 3, 4
IMAGE = (4, 5)


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
        pairs: Function of no argument. Returns pairs of layers: one of `layer`, and in a list those of `loop`
            whose weights it holds stacked.
    """
    given = {} if initial_state is None else {"initial_state": initial_state}
    layer(x, **given, **kwargs)  # builds it
    cotangents = [rng.normal(size=y.shape) for y in to_numpy(loop(x, **given, **kwargs))]
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
    loop(x)
    for name, values in constants:
        for cell, value in zip(loop.cells, values, strict=True):
            getattr(cell, name).assign(value)
    assert_same(layer, loop, lambda: [(layer, loop.cells)], x, rng, start if given else None)


def repeated(y):
    return np.repeat(y[:, None], T, axis=1)


def soft(z, theta):
    return ops.sign(z) * ops.relu(ops.abs(z) - theta)


either_form = pytest.mark.parametrize("unroll", [False, True])
# On JAX each takes seconds to compile.
either_form_of_cell = pytest.mark.parametrize("unroll", [False] if BACKEND == "jax" else [False, True])


# Algorithms unfolded: the measurements are the input of every timestep.


class SupportSelectionCell(keras.Layer):
    """LISTA-CPSS (Chen et al., 2018): the largest entries are not shrunk, more of them at later steps."""

    state_size = N

    def build(self, input_shape):
        self.w = self.add_weight(name="w", shape=(M, N))
        self.theta = self.add_weight(name="theta", shape=(), initializer=keras.initializers.Constant(0.1))
        self.selected = self.add_weight(name="selected", shape=(), initializer="zeros", trainable=False)

    def call(self, y, states):
        (x,) = states
        z = x + ops.matmul(y - ops.matmul(x, A.T), self.w)
        rank = ops.argsort(ops.argsort(-ops.abs(z)))
        x = ops.where(ops.cast(rank, z.dtype) < self.selected, z, soft(z, self.theta))
        return x, [x]


@either_form_of_cell
def test_lista_with_support_selection(unroll, rng):
    y = repeated(rng.normal(size=(B, M)))
    constants = [("selected", [0, 1, 1, 2])]
    assert_cell_unfolds(SupportSelectionCell, y, [np.zeros((B, N))], rng, unroll, constants)


def lamp_step(y, states, correction, alpha):
    """The estimate, the residual with its Onsager term, and that term's factor."""
    x, v, factor = states
    v = y - ops.matmul(x, A.T) + factor * v
    x = soft(x + correction(v), alpha * ops.norm(v, axis=-1, keepdims=True) / np.sqrt(M))
    factor = ops.sum(ops.cast(ops.not_equal(x, 0), x.dtype), axis=-1, keepdims=True) / M
    return x, [x, v, factor]


class LAMPCell(keras.Layer):
    """Learned approximate message passing (Borgerding, Schniter and Rangan, 2017)."""

    state_size = (N, M, 1)

    def build(self, input_shape):
        self.b = self.add_weight(name="b", shape=(M, N))
        self.alpha = self.add_weight(name="alpha", shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, y, states):
        return lamp_step(y, states, lambda v: ops.matmul(v, self.b), self.alpha)


@either_form_of_cell
def test_lamp(unroll, rng):
    start = [np.zeros((B, size)) for size in LAMPCell.state_size]
    assert_cell_unfolds(LAMPCell, repeated(rng.normal(size=(B, M))), start, rng, unroll)


class TISTACell(keras.Layer):
    """Ito, Takabe and Wadayama, 2019: the only thing learned is one step size."""

    state_size = N
    inverse = np.linalg.pinv(A)
    variance, nonzero, signal = 0.01, 0.3, 1.0

    def build(self, input_shape):
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="ones")

    def call(self, y, states):
        (s,) = states
        residual = y - ops.matmul(s, A.T)
        r = s + self.gamma * ops.matmul(residual, self.inverse.T)
        power = ops.sum(ops.square(residual), axis=-1, keepdims=True)
        v2 = ops.maximum((power - M * self.variance) / float(np.sum(A**2)), 1e-9)
        noise = float(np.sum(self.inverse**2)) * self.variance / N
        tau2 = v2 * (1 + (self.gamma**2 - 2 * self.gamma) * M / N) + self.gamma**2 * noise
        xi = self.signal + tau2
        odds = np.log(self.nonzero / (1 - self.nonzero)) + ops.log(tau2 / xi) / 2
        s = r * self.signal / xi * ops.sigmoid(odds + r**2 / 2 * (1 / tau2 - 1 / xi))
        return s, [s]


@either_form_of_cell
def test_tista(unroll, rng):
    assert_cell_unfolds(TISTACell, repeated(rng.normal(size=(B, M))), [np.zeros((B, N))], rng, unroll)


class DetNetCell(keras.Layer):
    """Samuel, Diskin and Wiesel, 2017. Its input is a matrix, `H'H` and beside it `H'y`."""

    state_size = (M, 2)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(N, activation="relu")
        self.symbols, self.memory = keras.layers.Dense(M), keras.layers.Dense(2)

    def build(self, input_shape):
        self.slope = self.add_weight(name="slope", shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, inputs, states):
        x, v = states
        gram, matched = inputs[..., :-1], inputs[..., -1]
        projected = ops.squeeze(ops.matmul(gram, x[..., None]), axis=-1)
        z = self.hidden(ops.concatenate([matched, x, projected, v], axis=-1))
        s = self.symbols(z)
        x = -1 + (ops.relu(s + self.slope) - ops.relu(s - self.slope)) / ops.abs(self.slope)
        return x, [x, self.memory(z)]


@either_form_of_cell
def test_detnet_with_the_loss_of_every_layer(unroll, rng):
    h, y = rng.normal(size=(B, N, M)), rng.normal(size=(B, N, 1))
    x = repeated(h.transpose(0, 2, 1) @ np.concatenate([h, y], axis=-1))
    assert_cell_unfolds(DetNetCell, x, [np.zeros((B, M)), np.zeros((B, 2))], rng, unroll)


class CascadeCell(keras.Layer):
    """Schlemper et al., 2017: a network cleans the image, its spectrum moves towards what was measured."""

    state_size = (*IMAGE, 2)  # real and imaginary part

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first = keras.layers.Conv2D(3, 3, padding="same", activation="tanh")
        self.second = keras.layers.Conv2D(2, 3, padding="same")

    def build(self, input_shape):
        self.strength = self.add_weight(name="strength", shape=(), initializer="ones")

    def get_initial_state(self, batch_size=None):
        return [ops.ones((batch_size, *self.state_size), self.compute_dtype)]

    def call(self, inputs, states):
        image = states[0] + self.second(self.first(states[0]))
        spectrum = ops.stack(ops.fft2((image[..., 0], image[..., 1])), axis=-1)
        measured, mask = inputs[..., :2], inputs[..., 2:]
        spectrum = spectrum - self.strength * mask * (spectrum - measured)
        image = ops.stack(ops.ifft2((spectrum[..., 0], spectrum[..., 1])), axis=-1)
        return image, [image]


@either_form_of_cell
def test_convolutions_with_data_consistency(unroll, rng):
    mask = (rng.random((B, *IMAGE, 1)) < 0.5) * 1.0
    x = repeated(np.concatenate([mask * rng.normal(size=(B, *IMAGE, 2)), mask], axis=-1))
    assert_cell_unfolds(CascadeCell, x, [np.ones((B, *IMAGE, 2))], rng, unroll)


# Strategies and networks.


class StrategyCell(keras.Layer):
    """Deep hedging (Buehler et al., 2019): the next holding, from the market and the holding so far."""

    state_size = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.network = [keras.layers.Dense(units, "tanh") for units in (4, 3)] + [keras.layers.Dense(1)]

    def call(self, market, states):
        holding = ops.concatenate([market, states[0]], axis=-1)
        for layer in self.network:
            holding = layer(holding)
        return holding, [holding]


@either_form_of_cell
def test_deep_hedging(unroll, rng):
    assert_cell_unfolds(StrategyCell, rng.normal(size=(B, T, 2)), [np.zeros((B, 1))], rng, unroll)


class BlockCell(keras.Layer):
    """A transformer's block, with depth as time: nothing comes in but the tokens, which are the state."""

    state_size = ((TOKENS, WIDTH),)

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention = keras.layers.MultiHeadAttention(2, key_dim=3)
        self.norms = [keras.layers.LayerNormalization(), keras.layers.LayerNormalization()]
        self.mlp = [keras.layers.Dense(2 * WIDTH, "gelu"), keras.layers.Dense(WIDTH)]

    def call(self, nothing, states):
        (x,) = states
        z = self.norms[0](x)
        x = x + self.attention(z, z)
        x = x + self.mlp[1](self.mlp[0](self.norms[1](x)))
        return x, [x]


def test_transformer_blocks(rng):
    tokens = [rng.normal(size=(B, TOKENS, WIDTH))]
    assert_cell_unfolds(BlockCell, np.zeros((B, T, 0)), tokens, rng, unroll=False, given=True)


class CellWithHead(keras.Layer):
    def __init__(self, units, outputs):
        super().__init__()
        self.cell, self.head = keras.layers.SimpleRNNCell(units), keras.layers.Dense(outputs)

    def call(self, inputs, states):
        output, states = self.cell(inputs, states)
        return self.head(output), states


@either_form_of_cell
def test_time_varying_rnn_in_segments(unroll, rng):
    """TV-RNN: segments of unequal length, each with its own head."""
    index = [0, 0, 1, 2, 2, 2, 3, 4, 4]
    layer = UntiedSimpleRNN(
        4, output_units=2, weight_index=index, return_sequences=True, return_state=True, unroll=unroll
    )
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
    layer = keras.layers.Bidirectional(UntiedSimpleRNN(4, period=3, return_sequences=True))
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


@either_form
@pytest.mark.parametrize("cell", [lista_cell, lamp_cell])
def test_a_matrix_that_all_timesteps_share(cell, unroll, rng):
    model = SharedMatrix(cell, lambda make: UntiedRNN(make(), return_sequences=True, unroll=unroll))
    loop = SharedMatrix(cell, listed)

    def pairs():
        return [(model.matrix, [loop.matrix]), (model.timesteps, loop.timesteps.cells)]

    assert_same(model, loop, pairs, rng.normal(size=(B, M)), rng)


@pytest.mark.parametrize(("cell", "unroll"), [(lista_cell, False), (lamp_cell, True)])
def test_fit_trains_a_matrix_that_all_timesteps_share(cell, unroll, rng):
    options = {"return_sequences": True, "unroll": unroll}
    untied = SharedMatrix(cell, lambda make: UntiedRNN(make(), **options))
    tied = SharedMatrix(cell, lambda make: UntiedRNN(make(), block_size=T, timesteps=T, **options))
    of_keras = SharedMatrix(cell, lambda make: keras.layers.RNN(make(), return_sequences=True))
    loop = SharedMatrix(cell, listed)
    y, target, w = rng.normal(size=(B, M)), rng.normal(size=(B, T, N)), rng.normal(size=(M, N))
    for model in (untied, tied, of_keras, loop):
        model.matrix.kernel.assign(w)
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(y, target, batch_size=B, verbose=0)

    def trained(layer):
        return [ops.convert_to_numpy(weight).ravel() for weight in layer.trainable_weights]

    for one, other in ((untied, loop), (tied, of_keras)):
        np.testing.assert_allclose(trained(one.matrix), trained(other.matrix), **EXACT)
        np.testing.assert_allclose(
            np.ravel(trained(one.timesteps)), np.ravel(trained(other.timesteps)), **EXACT
        )
        assert np.abs(trained(one.matrix)[0] - w.ravel()).max() > 1e-3
