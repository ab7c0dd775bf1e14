"""The race that the performance figures come from."""

import importlib
import pathlib
from dataclasses import replace

import keras
import numpy as np
import pytest
from conftest import BACKEND, DTYPE, EXACT

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


FAULTY = """
import os
import time

from problems import WEIGHTS, reference

poisoned = False


class Fine:
    tied = False

    def __init__(self, problem):
        self.found = reference(problem, tied=False)

    def forward(self):
        return self.found["state"]

    def step(self):
        if poisoned:
            raise RuntimeError("poisoned")

    def current_weights(self):
        return [self.found[f"updated {name}"] for name in WEIGHTS]


class Wrong(Fine):
    def forward(self):
        return 1.1 * self.found["state"]


class Hanging(Fine):
    def step(self):
        time.sleep(1000)


class Raising(Fine):
    def step(self):
        raise ValueError("raised")


class Dying(Fine):
    def step(self):
        os._exit(1)


class Poisonous(Fine):
    def step(self):
        global poisoned
        poisoned = True
        raise ValueError("poison")


def description():
    return "faulty", False


def gpu_contestants(problem):
    makers = (Fine, Wrong, Hanging, Raising, Dying, Poisonous)
    contestants = {maker.__name__: ("peer", "step", maker) for maker in makers}
    return {**contestants, "Last": ("slow", "step", Fine)}
"""


def test_a_faulty_contestant_costs_the_gpu_benchmark_its_own_row_only(
    benchmark, monkeypatch, tmp_path, capsys
):
    gpu, workers = benchmark("gpu"), benchmark("workers")
    (tmp_path / "faulty.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(workers.LIBRARIES, "faulty", ("faulty", {}))
    monkeypatch.setitem(workers.LIBRARIES, "absent", ("not_installed", {}))
    race = gpu.Race(tmp_path, limit=3, minutes=5, at_least=0.0, only=[])
    task = gpu.Task.of(gpu.TINY)
    race.start(["absent", "faulty"])
    race.run("tiny", task, seconds=300)
    race.run("late", task, seconds=0)
    race.summary()
    race.close()

    notes = {name: row["note"] for name, row in race.rows["tiny"].items()}
    assert notes == {
        "Fine": "",
        "Wrong": "differs from the plain loop",
        "Hanging": "first_call: stopped at the limit",
        "Raising": "first_call: ValueError: raised",
        "Dying": "first_call: the process died",
        "Poisonous": "first_call: ValueError: poison",
        "Last": "",
    }
    assert race.best("tiny", "step", "*")[1] in ("Fine", "Last")
    assert race.not_run == {"tiny": [], "late": list(race.rows["tiny"])}
    assert "absent: left out (" in capsys.readouterr().out
    assert len((tmp_path / "gpu.csv").read_text().splitlines()) == 1 + len(notes)


@pytest.mark.parametrize("cell", CELLS)
def test_the_gpu_benchmark_knows_stages_and_modes(cell, benchmark):
    gpu, measurements = benchmark("gpu"), benchmark("gpu_measurements")
    library = benchmark("contestants.with_tensorflow")
    for stage, mode, _ in library.gpu_contestants(replace(gpu.TINY, cell=cell)).values():
        assert stage in gpu.STAGES
        assert mode in measurements.CALLS


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


# What a contestant of `libraries.py` needs beside the backend.
LSTMS = {
    "jax": {
        "flax linen": "flax",
        "flax nnx": "flax",
        "haiku": "haiku",
        "equinox": "equinox",
        "haliax": "haliax",
        "this layer, JAX": "jax",
        "this layer, unroll=False, JAX": "jax",
    },
    "tensorflow": {
        f"{name}, TensorFlow{xla}": "tensorflow"
        for name in ("list of Keras cells", "this layer")
        for xla in (" XLA", "")
    },
    "torch": {"list of torch cells": "torch", "list of torch cells, torch.compile": "torch"},
}[BACKEND]


# What haliax calls in JAX.
@pytest.mark.filterwarnings("ignore:jax.core.is_constant_dim is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.release] if "compile" in name else []) for name in LSTMS],
)
def test_each_library_computes_the_untied_lstm_of_numpy(name, benchmark):
    pytest.importorskip(LSTMS[name], reason="a library that is compared, and no dependency")
    problems, workers = benchmark("problems"), benchmark("workers")
    answers = workers.Answers(f"contestants.lstms_with_{BACKEND}")
    problem = replace(problems.TINY, cell="lstm")
    assert list(answers.enter(problem)) == list(LSTMS)
    assert answers.tiny_error(problem, name) < 1e-5
    assert name.split(",")[0] in benchmark("libraries").FILES


def test_lines_of_code_are_neither_blank_nor_comments_nor_docstrings(benchmark, tmp_path):
    path = tmp_path / "code.py"
    path.write_text(
        '"""One\nand two."""\n# Three.\nx = 1\n\ndef f():\n    """Four."""\n    return (\n        x)'
    )
    assert benchmark("libraries").lines(path) == 4
