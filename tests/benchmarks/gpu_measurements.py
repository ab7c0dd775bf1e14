"""What a process of `gpu.py` answers: the measurements of one contestant at a time."""

import gc
import importlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from problems import EPSILON, RHO, TINY, WEIGHTS, Problem, reference
from workers import mean_seconds, seconds_per_call

# Mode: how a contestant is called for its outputs, and how for a training step.
CALLS = {"step": ("forward", "step"), "floor": ("forward", "step"), "fit": ("predict_batch", "fit_step")}
LEARNING_RATE = 1e-3  # Keras's default: float32 must show the first update
REPEATS = 5


@dataclass(frozen=True)
class Task(Problem):
    """A problem whose weights are drawn, and whose results are known, once for all contestants."""

    drawn: dict = field(default_factory=dict, compare=False)
    expected: dict = field(default_factory=dict, compare=False)  # state and gradients, by whether tied

    @classmethod
    def of(cls, problem: Problem) -> "Task":
        task = cls(**{**asdict(problem), "learning_rate": LEARNING_RATE}, drawn=problem.weights())
        for tied in (False, True):
            found = reference(task, tied)
            names = ("state", *(f"gradient of {name}" for name in WEIGHTS))
            task.expected[tied] = [found[name].astype("float32") for name in names]
        return task

    def weights(self, tied: bool = False) -> dict[str, np.ndarray]:
        return super().weights(tied) if tied else self.drawn


class Measurements:
    """What a process answers: of one contestant at a time."""

    def __init__(self, module: str):
        self.module_name = module

    @cached_property
    def module(self) -> Any:
        return importlib.import_module(self.module_name)

    @cached_property
    def tiny(self) -> Any:
        *_, make = next(iter(self.module.gpu_contestants(TINY).values()))
        return make(TINY)

    def describe(self) -> tuple[str, bool]:
        return self.module.description()

    def warm_up(self) -> None:
        """A step that works as long as the library does, and has it load what it loads once."""
        self.tiny.step()

    def enter(self, task: Task) -> dict[str, str]:
        """Names and stages."""
        self.task, self.entries = task, self.module.gpu_contestants(task)
        return {name: stage for name, (stage, *_) in self.entries.items()}

    def make(self, name: str, at_least: float) -> dict[str, float]:
        self.contestant = self.for_outputs = self.for_training = None
        gc.collect()  # the memory of the last one is free again
        _, self.mode, make = self.entries[name]
        self.contestant, self.at_least, self.differences = make(self.task), at_least, []
        self.for_outputs, self.for_training = (getattr(self.contestant, call) for call in CALLS[self.mode])
        self.tied = getattr(self.contestant, "tied", False)
        return {}

    def outputs(self) -> dict[str, float]:
        state = self.for_outputs()
        if self.mode != "floor":
            self.compare([np.asarray(state)[: self.task.batch]], self.task.expected[self.tied][:1])
        return self.found(CALLS[self.mode][0], self.milliseconds(self.for_outputs))

    def first_call(self) -> dict[str, float]:
        """The seconds of the first training step. For `fit` that is one step of it."""
        self.contestant.fit_steps = 1
        start = time.perf_counter()
        self.for_training()
        seconds = time.perf_counter() - start
        if self.mode != "floor":
            before = (self.task.weights(self.tied)[name] for name in WEIGHTS)
            pairs = zip(self.contestant.current_weights(), before, strict=True)
            updates = [after - (weight[0] if self.tied else weight) for after, weight in pairs]
            # The loss of `fit` is a mean over the units, too.
            scale = 2 / self.task.units if self.mode == "fit" else 1.0
            gradients = (scale * gradient for gradient in self.task.expected[self.tied][1:])
            expected = (-LEARNING_RATE * g / np.sqrt((1 - RHO) * g**2 + EPSILON) for g in gradients)
            self.compare(updates, expected)
        return self.found("first_call", seconds)

    def training(self) -> dict[str, float]:
        not_run = 1e3 * getattr(self.contestant, "update_seconds", 0.0)
        return self.found(CALLS[self.mode][1], self.milliseconds(self.for_training) + not_run)

    def compare(self, found: Iterable[np.ndarray], expected: Iterable[np.ndarray]) -> None:
        pairs = zip(found, expected, strict=True)
        self.differences += [np.linalg.norm(f - e) / np.linalg.norm(e) for f, e in pairs]

    def found(self, column: str, value: float) -> dict[str, float]:
        # NumPy's maximum is not a number if any is not.
        return {column: value} | ({"difference": np.max(self.differences)} if self.differences else {})

    def milliseconds(self, call: Callable[[], Any]) -> float:
        """Median of the repeats, fewer of which do where a call is slow."""
        steps = 1
        if self.mode == "fit":  # as many steps as make what happens once in a call small
            self.contestant.fit_steps = 5
            seconds = seconds_per_call(call, 0.0) / 5
            steps = self.contestant.fit_steps = int(np.clip(self.at_least / 2 / seconds, 5, 500))
        times, start = [], time.perf_counter()
        while len(times) < REPEATS and (not times or time.perf_counter() - start < 2 * self.at_least):
            times.append(mean_seconds(call, self.at_least / REPEATS))
        return 1e3 * float(np.median(times)) / steps
