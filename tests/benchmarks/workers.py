"""One process per library, told through a pipe what to run, so that one alone computes at a time."""

import importlib
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from problems import TINY, Problem, reference

TOLERANCE = 1e-4

# Name: module of contestants, environment. Set before the library is imported.
LIBRARIES = {
    "tensorflow": ("contestants.with_tensorflow", {"KERAS_BACKEND": "tensorflow"}),
    "jax": ("contestants.with_jax", {"KERAS_BACKEND": "jax"}),
    "torch": ("contestants.with_torch", {"KERAS_BACKEND": "torch"}),
    "numpy, 1 thread": ("contestants.with_numpy", {"OPENBLAS_NUM_THREADS": "1"}),
    "numpy, all threads": ("contestants.with_numpy", {}),
}


class Worker:
    """A library in a process of its own; dies with its parent.

    Args:
        library: One of `LIBRARIES`.
        answers: Called there; returns an object whose methods answer the requests, by name. If not given,
            `Answers` of the library's contestants.
        settings: Environment beside the library's own.
    """

    def __init__(
        self,
        library: str,
        answers: Callable[[], Any] | None = None,
        settings: Mapping[str, str] | None = None,
    ):
        module, environment = LIBRARIES[library]
        context = multiprocessing.get_context("spawn")
        before = dict(os.environ)
        # OpenBLAS would else use the kernels of another processor.
        for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
            os.environ.pop(name, None)
        os.environ.update(environment, TF_CPP_MIN_LOG_LEVEL="3", **(settings or {}))
        self.pipe, theirs = context.Pipe()
        answers = answers or partial(Answers, module)
        self.process = context.Process(target=_serve, args=(theirs, answers), daemon=True)
        self.process.start()
        theirs.close()
        os.environ.clear()
        os.environ.update(before)

    def ask(self, request: str, *arguments: Any, limit: float = 300) -> Any:
        """The answer; raises `RuntimeError` with what went wrong, `TimeoutError` after `limit` seconds."""
        try:
            self.pipe.send((request, arguments))
            if not self.pipe.poll(limit):
                self.close()
                raise TimeoutError(f"no answer in {limit:.0f} s")
            failed, answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.close()
            raise RuntimeError("the process died") from None
        if failed:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, make_answers: Callable[[], Any]) -> None:
    answers = make_answers()
    while True:
        request, arguments = pipe.recv()
        try:
            pipe.send((False, getattr(answers, request)(*arguments)))
        except Exception as error:
            pipe.send((True, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))


class Answers:
    def __init__(self, module: str):
        self.module_name = module
        self.made: dict[tuple[Problem, str], Any] = {}

    def enter(self, problem: Problem) -> dict[str, str]:
        """What the library can enter: names and kinds. Raises where it is not installed."""
        self.module = importlib.import_module(self.module_name)
        return {name: kind for name, (kind, _) in self.module.contestants(problem).items()}

    def tiny_error(self, problem: Problem, name: str) -> float:
        """The largest relative error on a tiny problem of the same cell, weight update included."""
        tiny = replace(TINY, cell=problem.cell)
        kind, make = self.module.contestants(tiny)[name]
        return _error(make(tiny), tiny, kind)

    def make(self, problem: Problem, name: str) -> float:
        """Makes a contestant and returns the seconds of its first training step: trace, compile, run."""
        contestant = self.module.contestants(problem)[name][1](problem)
        start = time.perf_counter()
        contestant.step()
        self.made[problem, name] = contestant
        return time.perf_counter() - start

    def error(self, problem: Problem, name: str) -> float:
        """The largest relative error of what `make` has made."""
        return _error(self.made[problem, name], problem, self.module.contestants(problem)[name][0])

    def peak_memory(self, problem: Problem, name: str) -> float:
        """Megabytes that training takes at its peak, beside the library's (Linux only).

        To be asked in a new process: memory that another contestant has left behind would not be counted.
        """
        before = resident_memory("VmRSS")
        self.make(problem, name)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak so far, of making weights and of compiling, is forgotten
        for _ in range(3):
            self.made[problem, name].step()
        return resident_memory("VmHWM") - before

    def seconds(self, problem: Problem, name: str, mode: str, at_least: float) -> float:
        """Seconds per call, from as many calls as take `at_least` seconds."""
        return seconds_per_call(getattr(self.made[problem, name], mode), at_least)


def seconds_per_call(call: Callable[[], Any], at_least: float) -> float:
    call()  # caches and threads as this call leaves them, not as another did
    return mean_seconds(call, at_least)


def mean_seconds(call: Callable[[], Any], at_least: float) -> float:
    calls, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < at_least or not calls:
        call()
        calls += 1
    return elapsed / calls


def resident_memory(entry: str) -> float:
    """An entry of this process's status, in megabytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(entry)) / 1024


def _error(contestant: Any, problem: Problem, kind: str) -> float:
    if kind == "floor":  # computes no result
        contestant.step()
        return 0.0
    results, expected = contestant.results(), reference(problem, tied=kind == "tied")
    errors = [np.abs(results[key] - expected[key]).max() / np.abs(expected[key]).max() for key in expected]
    return float(np.max(errors))  # NaN if any is, unlike `max`
