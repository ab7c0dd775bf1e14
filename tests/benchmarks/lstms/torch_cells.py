"""torch: a list of cells and a loop."""

import torch


class UntiedLSTM(torch.nn.Module):
    def __init__(self, timesteps, inputs, units):
        super().__init__()
        self.cells = torch.nn.ModuleList(torch.nn.LSTMCell(inputs, units) for _ in range(timesteps))

    def forward(self, x):
        states = None
        for cell, x_t in zip(self.cells, x.unbind(1), strict=True):
            states = cell(x_t, states)
        return states[0]


def build(timesteps: int, inputs: int, units: int):
    return UntiedLSTM(timesteps, inputs, units)
