"""The self-test on this machine, and whether it notices what is wrong."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
from conftest import BACKEND
from keras import ops

from untied_rnn import UntiedDense, UntiedGRU, selftest
from untied_rnn import _reference as reference
from untied_rnn._layers import lstm
from untied_rnn._loops import compilation
from untied_rnn._reference import dense

BATCHES, UNITS = (1, 7, 32_769, 40_000), (1, 3, 64, 120)
TINY = (7, 3, 2)


def wrong_results(name, shape, forms=selftest.FORMS):
    return [result for result in selftest.run(name, shape, forms) if not result.is_right]


def assert_right(*args):
    wrong = wrong_results(*args)
    assert not wrong, "\n".join(map(str, wrong))


# The command, which runs below as well, has the other batch and three units.
SHAPES = [
    (7, 64, [selftest.DEFAULT]),
    pytest.param(1, 120, selftest.FORMS, marks=pytest.mark.release),
    pytest.param(40_000, 1, selftest.FORMS, marks=pytest.mark.release),
]


@pytest.mark.parametrize(("batch", "units", "forms"), SHAPES, ids=["7-64", "1-120", "40000-1"])
@pytest.mark.parametrize("name", selftest.SUBJECTS)
def test_compilers_compute_the_layers_right(name, batch, units, forms):
    assert_right(name, (batch, 2, units), forms)


@pytest.mark.slow
@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", selftest.SUBJECTS)
def test_compilers_compute_all_shapes_right(name, batch, units):
    assert_right(name, (batch, 3, units))


@pytest.fixture
def tiny(monkeypatch):
    """A self-test of small shapes."""
    for name in ("SMALL", "LARGE"):
        monkeypatch.setattr(selftest, name, TINY)


def check_report(report, subjects):
    versions, device, *layers, verdict = report.splitlines()
    for name in ("python", "untied_rnn", "keras", BACKEND, "numpy"):
        assert f"{name} " in versions
    assert ("jaxlib" in versions) == (BACKEND == "jax")
    assert device.startswith("device ")
    assert [line.split()[0] for line in layers] == list(subjects)
    largest = max(float(line.split()[-1]) for line in layers)
    assert verdict.startswith("RIGHT: all ")
    assert verdict.endswith(f"The largest relative error is {largest:.1e}.")


@pytest.mark.release
def test_command():
    done = subprocess.run(
        [sys.executable, "-m", "untied_rnn.selftest"], capture_output=True, text=True, check=True
    )
    check_report(done.stdout, selftest.SUBJECTS)


def test_command_prints_versions_layers_and_verdict(tiny, monkeypatch, capsys):
    for name in ("UntiedSimpleRNN", "UntiedLSTM", "UntiedRNN"):  # for time
        monkeypatch.delitem(selftest.SUBJECTS, name)
    assert selftest.main() == 0
    check_report(capsys.readouterr().out, selftest.SUBJECTS)


def test_command_says_what_is_wrong(tiny, monkeypatch, capsys):
    right = UntiedGRU.call
    monkeypatch.setattr(UntiedGRU, "call", lambda *args, **kwargs: 1.01 * right(*args, **kwargs))
    for name in ("UntiedSimpleRNN", "UntiedLSTM", "UntiedRNN"):  # for time
        monkeypatch.delitem(selftest.SUBJECTS, name)
    assert selftest.main() == 1
    *lines, verdict = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if "expected" in line]
    assert verdict.startswith(f"WRONG: {len(wrong)} of ")
    # In each form the outputs and four gradients.
    assert len(wrong) == 5 * (1 + len(selftest.FORMS))
    assert all(line.startswith("UntiedGRU (") for line in wrong)
    (line,) = (line for line in wrong if f"({selftest.DEFAULT}; " in line and "outputs" in line)
    assert "batch 7, 3 timesteps, 2 units" in line
    expected, received = (
        float(line.split(f"{word} ")[1].split()[0].rstrip(",.")) for word in ("expected", "received")
    )
    assert received == pytest.approx(1.01 * expected, rel=1e-5)


@pytest.mark.skipif(BACKEND != "torch", reason="the same on each backend, and slow on others")
def test_command_fails_if_numbers_are_wrong(monkeypatch, capsys):
    monkeypatch.setattr(reference, "dense", lambda x, kernel, bias: 1.01 * dense(x, kernel, bias))
    monkeypatch.delitem(sys.modules, "untied_rnn.selftest")  # else `runpy` warns
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module("untied_rnn.selftest", run_name="__main__")
    assert "UntiedDense (" in capsys.readouterr().out


def test_tensor_float_32_counts_as_rounding_on_a_gpu(monkeypatch):
    full = selftest._explained(1)
    monkeypatch.setattr(selftest, "_device", lambda: "cuda:0")
    # Torch has it off by default.
    assert (selftest._explained(1) > 1000 * full) == (BACKEND != "torch")


@pytest.mark.skipif(BACKEND == "torch", reason="has one form")
def test_each_form_runs(monkeypatch):
    """What is wrong in a loop only, or under XLA only, is wrong there only."""
    right = lstm._LSTMGates.backward

    def backward(self, *args):
        delta, _, rest = right(self, *args)
        return 1.01 * delta, 1.01 * delta, rest

    monkeypatch.setattr(lstm._LSTMGates, "backward", backward)
    wrong = wrong_results("UntiedLSTM", TINY)
    assert {result.form for result in wrong} == {form for form in selftest.FORMS if form.unroll is False}
    quantities = {result.quantity for result in wrong}
    assert quantities == {f"gradient of {name}" for name in ("x", "kernel", "recurrent_kernel", "bias")}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="runs with XLA or without")
def test_xla_compiles_where_the_form_says_so(monkeypatch):
    right = UntiedDense.call
    monkeypatch.setattr(
        UntiedDense, "call", lambda *args: (1.01 if compilation._around() == "xla" else 1) * right(*args)
    )
    assert {result.form.xla for result in wrong_results("UntiedDense", TINY)} == {True}


@pytest.mark.parametrize("wrong", [0.0, 1.001, np.nan, np.inf])
def test_one_wrong_row_is_noticed(wrong, monkeypatch):
    """Rows beyond 2^15, of which the smallest odd batch has one."""
    right = UntiedDense.call
    factors = np.where(np.arange(32_769) < 32_768, 1, wrong).astype("float32")[:, None, None]

    def call(*args):
        return ops.convert_to_tensor(factors) * right(*args)

    monkeypatch.setattr(UntiedDense, "call", call)
    results = wrong_results("UntiedDense", (32_769, 2, 1))
    assert np.isfinite(wrong) or max(result.error for result in results) == np.inf
    quantities = {result.quantity for result in results}
    assert {"outputs", "gradient of x"} <= quantities
    if wrong != 1.001:  # which is lost among the other rows
        assert "gradient of kernel" in quantities
