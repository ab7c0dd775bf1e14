"""The race that the performance figures come from."""

import importlib
import pathlib

import pytest

pytest.importorskip("matplotlib", reason="the benchmarks draw with it")


class Answering:
    """A worker that answers what it is told to."""

    def __init__(self, **answers):
        self.answers = answers

    def ask(self, request, *arguments, **options):
        return self.answers[request]


@pytest.mark.parametrize("wrong", ["tiny_error", "error"])
@pytest.mark.parametrize("by", [0.0, 1e-3, float("nan")])
def test_what_disagrees_with_the_plain_loop_is_not_timed(wrong, by, monkeypatch, capsys):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / "benchmarks")
    speed = importlib.import_module("speed")
    race = speed.Race(speed.TINY, "tiny")
    race.workers["a library"] = Answering(**{"tiny_error": 0.0, "error": 0.0, "make": 0.1, wrong: by})
    race.enter(speed.Entry("a library", "a contestant", "untied"))
    assert [entry.name for entry in race.entries] == ([] if by else ["a contestant"])
    assert ("a contestant: not timed" in capsys.readouterr().out) == bool(by)
