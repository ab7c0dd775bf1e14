"""torch: this layer on Keras's torch backend, and a parameter per weight and timestep."""

from functools import partial
from typing import Any

import keras
import numpy as np
import torch
from cells import CELLS
from problems import EPSILON, RHO, WEIGHTS, Problem

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
LAYERS = {"simple": UntiedSimpleRNN, "lstm": UntiedLSTM, "gru": UntiedGRU}


def _finished(results: Any) -> Any:
    """`results`, waited for: a GPU works on by itself."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return results


class Contestant:
    """Subclasses define `make()`, of `self.parameters` (W, U and b, in one piece or many), and `state(x)`."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.x, self.y = map(torch.tensor, problem.data())
        self.make()

    def apply(self, gradients: list) -> None:
        self.optimizer.apply(gradients, self.variables)

    def forward(self) -> torch.Tensor:
        with torch.no_grad():
            return _finished(self.state(self.x))

    def gradients(self) -> list:
        return _finished(self._gradients())

    def _gradients(self) -> list:
        loss = ((self.state(self.x) - self.y) ** 2).sum(1).mean() / 2
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()
        return [parameter.grad for parameter in self.parameters]

    def step(self) -> None:
        gradients = self._gradients()
        with torch.no_grad():
            _finished(self.apply(gradients))

    def results(self) -> dict[str, np.ndarray]:
        state, gradients = self.forward().cpu().numpy(), self.stacked(self.gradients())
        self.step()
        return {
            "state": state,
            **{f"gradient of {name}": g for name, g in zip(WEIGHTS, gradients, strict=True)},
            **{f"updated {name}": w for name, w in zip(WEIGHTS, self.stacked(self.parameters), strict=True)},
        }

    def stacked(self, tensors: list) -> list[np.ndarray]:
        return [tensor.detach().cpu().numpy().copy() for tensor in tensors]


class Untied(Contestant):
    def make(self) -> None:
        p = self.problem
        layer = LAYERS[p.cell](p.units)
        self.model = keras.Sequential([keras.Input((p.timesteps, p.input_dim)), layer])
        weights = p.weights()
        layer.set_weights([weights[name] for name in WEIGHTS])
        self.variables = layer.trainable_variables
        self.parameters = [v.value for v in self.variables]
        self.optimizer = keras.optimizers.RMSprop(p.learning_rate, rho=RHO, epsilon=EPSILON)
        self.optimizer.build(self.variables)

    def state(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def simple_step(x: torch.Tensor, states: tuple, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> tuple:
    return (torch.tanh(torch.addmm(b, x, w) + states[0] @ u),)


def lstm_step(x: torch.Tensor, states: tuple, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> tuple:
    h, c = states
    i, f, g, o = (torch.addmm(b, x, w) + h @ u).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_step(x: torch.Tensor, states: tuple, w: torch.Tensor, u: torch.Tensor, b: torch.Tensor) -> tuple:
    (h,) = states
    x_z, x_r, x_g = torch.addmm(b[0], x, w).chunk(3, 1)
    h_z, h_r, h_g = torch.addmm(b[1], h, u).chunk(3, 1)
    return (torch.lerp(torch.tanh(x_g + (x_r + h_r).sigmoid() * h_g), h, (x_z + h_z).sigmoid()),)


STEPS = {"simple": simple_step, "lstm": lstm_step, "gru": gru_step}


class Parameters(Contestant):
    def __init__(self, problem: Problem, compiled: bool = False):
        super().__init__(problem)
        if compiled:
            self.state = torch.compile(self.state)

    def make(self) -> None:
        weights = self.problem.weights()
        self.parameters = [torch.nn.Parameter(torch.tensor(w)) for name in WEIGHTS for w in weights[name]]
        self.mean_squares = [torch.zeros_like(p) for p in self.parameters]

    def state(self, x: torch.Tensor) -> torch.Tensor:
        timesteps = self.problem.timesteps
        w, u, b = (self.parameters[i * timesteps : (i + 1) * timesteps] for i in range(3))
        step = STEPS[self.problem.cell]
        states = (torch.zeros(self.problem.batch, self.problem.units),) * CELLS[self.problem.cell].states
        for t, row in enumerate(x.unbind(1)):
            states = step(row, states, w[t], u[t], b[t])
        return states[0]

    def apply(self, gradients: list) -> None:
        """RMSprop in torch's own multi-tensor form, with epsilon where the others have it."""
        torch._foreach_mul_(self.mean_squares, RHO)
        torch._foreach_addcmul_(self.mean_squares, gradients, gradients, 1 - RHO)
        roots = torch._foreach_add(self.mean_squares, EPSILON)
        torch._foreach_sqrt_(roots)
        torch._foreach_addcdiv_(self.parameters, gradients, roots, -self.problem.learning_rate)

    def stacked(self, tensors: list) -> list[np.ndarray]:
        timesteps = self.problem.timesteps
        arrays = super().stacked(tensors)
        return [np.stack(arrays[i * timesteps : (i + 1) * timesteps]) for i in range(3)]


def contestants(problem: Problem) -> dict[str, tuple]:
    """What this library enters: name, and its kind and maker."""
    return {
        "this layer, torch": ("ours", Untied),
        "torch parameters": ("untied", Parameters),
        "torch parameters, torch.compile": ("untied", partial(Parameters, compiled=True)),
    }
