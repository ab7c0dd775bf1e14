"""What the pictures show, read off their lines, against NumPy."""

import importlib
import inspect
import sys

import keras
import numpy as np
import pytest
from cases import B, I, T, U, randomised, set_numbers
from conftest import BACKEND, DTYPE, EXACT
from example_cells import CELLS

pytest.importorskip("matplotlib", reason="matplotlib is in the extra `untied-rnn[plot]`")

import matplotlib
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from reference import simple_rnn

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN, plot
from untied_rnn.sharing import Blocks, Listed, Periodic

matplotlib.use("Agg")  # pictures in windows are of no use here


@pytest.fixture(autouse=True)
def pyplot_keeps_nothing():
    yield
    pyplot.close("all")


def built(rng, **options):
    layer = UntiedSimpleRNN(U, timesteps=T, dtype=DTYPE, **options)
    layer.build((B, layer.timesteps, I))
    return randomised(layer, rng)


def lines(ax):
    return {line.get_label(): np.array(line.get_ydata()) for line in ax.lines}


def matrices(layer, name):
    return np.stack([layer.weights_at(t)[name] for t in range(T)])


@pytest.mark.parametrize(
    "options", [{}, {"sharing": Blocks(2)}, {"frozen_timesteps": [1, 2]}, {"output_units": 2}]
)
def test_weight_norms(rng, options):
    layer = built(rng, **options)
    drawn = lines(plot.weight_norms(layer))
    assert list(drawn) == list(layer.weights_at(0))
    for name, norms in drawn.items():
        expected = [np.sqrt((w.astype("float64") ** 2).sum()) for w in matrices(layer, name)]
        np.testing.assert_allclose(norms, expected, **EXACT)


@pytest.mark.parametrize("name", ["kernel", "recurrent_kernel"])
def test_singular_values(rng, name):
    layer = built(rng, sharing=Listed([1, 0, 2, 1]))
    ax = plot.singular_values(layer, name)
    drawn = np.stack([line.get_ydata() for line in ax.lines])
    for t, w in enumerate(matrices(layer, name)):
        np.testing.assert_allclose(np.sort(drawn[:, t] ** 2)[::-1], gram_spectrum(w), **EXACT)
    assert ax.figure.axes[1].get_ylabel() == "rank, from the largest"


def gram_spectrum(w):
    small = w @ w.T if len(w) <= len(w.T) else w.T @ w
    return np.linalg.eigvalsh(small)[::-1]


def test_neighbour_distances(rng):
    layer = built(rng)
    layer.bias.assign(np.zeros(layer.bias.shape))
    layer.kernel.assign(rng.normal(size=(1, I, U)) * np.array([1, 1, -1, 2]).reshape(T, 1, 1))
    drawn = lines(plot.neighbour_distances(layer))
    w = matrices(layer, "recurrent_kernel").astype("float64").reshape(T, -1)
    size = [np.sqrt((w[t] @ w[t] + w[t - 1] @ w[t - 1]) / 2) for t in range(1, T)]
    expected = [np.sqrt(((w[t] - w[t - 1]) ** 2).sum()) / size[t - 1] for t in range(1, T)]
    np.testing.assert_allclose(drawn["recurrent_kernel"], expected, **EXACT)
    np.testing.assert_allclose(drawn["kernel"][:2], [0, 2], **EXACT)  # equal, and opposite
    np.testing.assert_array_equal(drawn["bias"], np.zeros(T - 1))
    ax = plot.neighbour_distances(layer)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [1, 2, 3])


@pytest.mark.parametrize(
    "options", [{}, {"output_units": 2, "output_activation": "tanh"}, {"stateful": True}]
)
def test_state_trajectories(rng, options):
    layer = built(rng, **options)
    x = rng.normal(size=(B, T, I))
    before = [np.array(w) for w in layer.get_weights()]
    ax = plot.state_trajectories(layer, x)
    weights = {name: matrices(layer, name) for name in ("kernel", "recurrent_kernel", "bias")}
    states, _ = simple_rnn(x, np.zeros((B, U)), **weights)
    grey = [line.get_xydata() for line in ax.lines[:B]]
    flat = (states - states.mean(axis=(0, 1))).reshape(-1, U)
    _, components = np.linalg.eigh(flat.T @ flat)
    for drawn, component in zip(np.stack(grey).reshape(-1, 2).T, components.T[:0:-1], strict=True):
        expected = flat @ component
        np.testing.assert_allclose(drawn * np.sign(drawn @ expected), expected, rtol=1e-4, atol=1e-4)
    first, last = ax.lines[B], ax.lines[-1]
    np.testing.assert_allclose(first.get_xydata(), [way[0] for way in grey])
    assert to_rgba(first.get_color()) != to_rgba(last.get_color())
    for w, same in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(w, same)


@pytest.mark.parametrize(
    "make",
    [
        lambda: UntiedLSTM(U, timesteps=T, recurrent_dropout=0.5, dtype=DTYPE),
        lambda: UntiedGRU(U, sharing=Periodic(2), dtype=DTYPE),
        lambda: UntiedRNN(CELLS["nested"](), timesteps=T, return_state=True),
    ],
    ids=["lstm", "gru", "cell"],
)
def test_state_trajectories_are_the_outputs_of_other_layers(rng, make):
    layer = make()
    layer.build((B, T, I))
    randomised(layer, rng)
    x = rng.normal(size=(B, T, I)).astype(DTYPE)
    grey = [line.get_xydata() for line in plot.state_trajectories(layer, x).lines[:B]]
    last = layer(x)
    last = keras.ops.convert_to_numpy(last[0] if isinstance(last, tuple) else last)
    assert [way.shape for way in grey] == [(T, 2)] * B
    if last.shape[1] == 2:  # nothing is lost: the projection turns, and keeps distances
        ends = np.stack([way[-1] for way in grey])
        distances = [np.linalg.norm(a[:, None] - a, axis=-1) for a in (ends, last)]
        np.testing.assert_allclose(*distances, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"frozen_timesteps": [1, 3]}, {"sharing": Listed([1, 0, 1, 0])}])
def test_gradient_norms(rng, options):
    layer = built(rng, **options)
    gradients = [rng.normal(size=variable.shape) for variable in layer.trainable_variables]
    drawn = lines(plot.gradient_norms(layer, gradients))
    frozen = options.get("frozen_timesteps", [])
    position = {0: 0, 2: 1} if frozen else dict(enumerate(set_numbers(layer, T)))
    for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
        norms = [np.nan if t in frozen else np.sqrt((gradient[position[t]] ** 2).sum()) for t in range(T)]
        np.testing.assert_allclose(drawn[variable.name], norms, rtol=1e-5)


def test_layers_without_an_end_are_drawn_for_one_period(rng):
    layer = UntiedGRU(U, sharing=Periodic(3))
    layer.build((None, None, I))
    assert {len(norms) for norms in lines(plot.weight_norms(layer)).values()} == {3}


def test_dense_layers_are_drawn(rng):
    layer = UntiedDense(U, timesteps=T)
    layer.build((None, T, I))
    assert len(lines(plot.neighbour_distances(layer))["kernel"]) == T - 1


DRAW = {
    "weight_norms": plot.weight_norms,
    "singular_values": plot.singular_values,
    "neighbour_distances": plot.neighbour_distances,
    "state_trajectories": lambda layer, **to: plot.state_trajectories(layer, np.ones((B, T, I)), **to),
    "gradient_norms": lambda layer, **to: plot.gradient_norms(layer, layer.get_weights(), **to),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_draws_into_given_axes_or_a_new_pyplot_figure(rng, draw):
    layer = built(rng)
    given = Figure().subplots()
    assert draw(layer, ax=given) is given
    assert not pyplot.get_fignums()
    new = draw(layer)
    assert [new.figure.number] == pyplot.get_fignums()
    for a, b in zip(new.lines, given.lines, strict=True):
        np.testing.assert_array_equal(a.get_xydata(), b.get_xydata())
    assert (new.get_xlabel(), new.get_ylabel()) == (given.get_xlabel(), given.get_ylabel()) != ("", "")


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_an_error_leaves_no_figure(rng, draw):
    with pytest.raises(ValueError, match="built"):
        draw(UntiedSimpleRNN(U))
    with pytest.raises(TypeError, match="`ax` to be one matplotlib Axes"):
        draw(built(rng), ax=Figure().subplots(1, 2))
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plot.weight_norms(keras.layers.Dense(2)), TypeError, "an untied layer. Received: <Dense"),
        (lambda: plot.weight_norms(UntiedSimpleRNN(2)), ValueError, "Expected a built layer"),
        (lambda: plot.state_trajectories(UntiedDense(2), None), TypeError, "untied recurrent layer"),
        (lambda: plot.singular_values(small(), "bias"), ValueError, r"'recurrent_kernel'\].*'bias'"),
        (lambda: plot.neighbour_distances(small(timesteps=1)), ValueError, "two timesteps or more"),
        (lambda: plot.state_trajectories(small(), np.zeros((1, 2, 1))), ValueError, "two components or more"),
        (lambda: plot.gradient_norms(small(), [np.zeros((2, 1, 1))]), ValueError, "a gradient for each"),
    ],
)
def test_errors(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


def small(timesteps=2):
    layer = UntiedSimpleRNN(1, timesteps=timesteps)
    layer.build((None, timesteps, 1))
    return layer


@pytest.mark.skipif(BACKEND != "tensorflow", reason="their gradients are TensorFlow's")
def test_examples_of_docstrings_run():
    for function in (plot.weight_norms, plot.gradient_norms):
        exec(inspect.getdoc(function).split("```python\n")[1].split("```")[0], {})


def test_says_what_it_needs(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, plot.__name__)
    with pytest.raises(ImportError, match=r'pip install "untied-rnn\[plot\]"'):
        importlib.import_module(plot.__name__)
