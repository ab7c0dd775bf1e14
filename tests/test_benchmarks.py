"""The race that the performance figures come from."""

import importlib
import pathlib
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import DTYPE, EXACT

pytest.importorskip("matplotlib", reason="the benchmarks draw with it")


CELLS = {"simple": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a module of the benchmarks by its name."""
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "benchmarks")
    return importlib.import_module


class Answering:
    """A worker that answers what it is told to."""

    def __init__(self, **answers):
        self.answers = answers

    def ask(self, request, *arguments, **options):
        return self.answers[request]


@pytest.mark.parametrize("wrong", ["tiny_error", "error"])
@pytest.mark.parametrize("by", [0.0, 1e-3, float("nan")])
def test_what_disagrees_with_the_plain_loop_is_not_timed(wrong, by, benchmark, capsys):
    speed = benchmark("speed")
    race = speed.Race(speed.TINY, "tiny")
    race.workers["a library"] = Answering(**{"tiny_error": 0.0, "error": 0.0, "make": 0.1, wrong: by})
    race.enter(speed.Entry("a library", "a contestant", "untied"))
    assert [entry.name for entry in race.entries] == ([] if by else ["a contestant"])
    assert ("a contestant: not timed" in capsys.readouterr().out) == bool(by)


@pytest.mark.parametrize("cell", CELLS)
def test_the_plain_loop_ends_where_keras_does(cell, benchmark):
    problems = benchmark("problems")
    problem = replace(problems.TINY, cell=cell)
    layer = CELLS[cell](problem.units, dtype=DTYPE)
    x, _ = problem.data()
    layer.build(x.shape)
    layer.set_weights([problem.weights(tied=True)[name][0] for name in problems.WEIGHTS])
    state = keras.ops.convert_to_numpy(layer(x.astype(DTYPE)))
    np.testing.assert_allclose(problems.reference(problem, tied=True)["state"], state, **EXACT)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_the_gradients_of_the_plain_loop_are_those_of_its_loss(cell, tied, benchmark, rng):
    problems = benchmark("problems")
    problem = replace(problems.TINY, cell=cell)
    x, y = problem.data()
    weights = {name: weight.astype("float64") for name, weight in problem.weights(tied).items()}
    found = problems.reference(problem, tied)
    for name, weight in weights.items():
        # Along one direction, by the complex-step method.
        direction = rng.standard_normal(weight.shape[1 if tied else 0 :])
        shifted = {**weights, name: weight + 1e-20j * direction}
        states, _ = problems.run(cell, x.astype("float64"), shifted)
        slope = (((states[-1] - y) ** 2).sum() / (2 * problem.batch)).imag / 1e-20
        np.testing.assert_allclose((found[f"gradient of {name}"] * direction).sum(), slope, rtol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_no_timed_number_is_denormal_after_many_timesteps(cell, benchmark):
    problems = benchmark("problems")
    found = problems.reference(problems.Problem(4, 784, 1, 8, cell), tied=False)
    assert 1e-3 < np.abs(found["state"]).max() < 1 - 1e-3
    sizes = np.abs(found["gradient of kernel"]).max(axis=(1, 2))
    assert sizes.min() > 1e-8
    assert sizes.max() < 10


@pytest.mark.parametrize("cell", ["LISTA", "LAMP", "DetNet", "VarNet", "hedging"])
def test_the_list_of_cells_is_the_loop_of_keras_if_all_weights_are_the_same(cell, benchmark):
    unfolded = benchmark("unfolded")
    problem = replace(unfolded.PROBLEMS[cell], timesteps=3, batch=2)
    x, _ = problem.data()
    cells = unfolded.ListOfCells(problem.cell, problem.timesteps)
    tied = keras.layers.RNN(problem.cell())
    sequences = np.repeat(x[:, None], problem.timesteps, axis=1) if problem.repeated else x
    tied.build(sequences.shape)
    cells.build(x.shape)
    cells.set_weights(tied.get_weights() * problem.timesteps)
    expected, outputs = (keras.ops.convert_to_numpy(layer(a)) for layer, a in ((tied, sequences), (cells, x)))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
