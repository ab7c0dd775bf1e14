"""The LSTM of `lstms` as a list of torch's cells."""

from functools import partial

import numpy as np
import torch
from lstms import torch_cells
from problems import Problem

from contestants.with_torch import Parameters

NAMES = ("weight_ih", "weight_hh", "bias_ih")


class Cells(Parameters):
    """A cell has a second bias, which stays as it is, so that all have the same parameters."""

    def make(self) -> None:
        p = self.problem
        self.model = torch_cells.build(p.timesteps, p.input_dim, p.units)
        stacks = [np.swapaxes(w, 1, -1) for w in p.weights().values()]
        with torch.no_grad():
            for t, cell in enumerate(self.model.cells):
                for name, stack in zip(NAMES, stacks, strict=True):
                    getattr(cell, name).copy_(torch.tensor(stack[t]))
                cell.bias_hh.zero_().requires_grad_(False)
        self.parameters = [getattr(cell, name) for name in NAMES for cell in self.model.cells]
        self.mean_squares = [torch.zeros_like(p) for p in self.parameters]

    def state(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def stacked(self, tensors: list) -> list[np.ndarray]:
        return [np.swapaxes(w, 1, -1) for w in super().stacked(tensors)]


def contestants(problem: Problem) -> dict[str, tuple]:
    """Name, and its kind and maker."""
    return {
        "list of torch cells": ("untied", Cells),
        "list of torch cells, torch.compile": ("untied", partial(Cells, compiled=True)),
    }
