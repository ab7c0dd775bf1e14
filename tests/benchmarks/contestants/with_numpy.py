"""The floor: the matrix products of a training step, and the memory traffic of the optimizer."""

import numpy as np
from cells import CELLS
from problems import Problem


class Floor:
    """Each product by BLAS, into memory that is there already; nothing is added, no tanh taken.

    The products are those that nobody can save: `x W` and `h U` forward; `delta U^T`, `h^T delta` and
    `x^T delta` backward, of all gates of a cell in one. The update reads the weight, its mean square and
    its gradient and writes two of them: as many bytes as copying 2.5 arrays.
    """

    def __init__(self, problem: Problem):
        p, width = problem, problem.units * CELLS[problem.cell].gates
        rng = np.random.default_rng(0)

        def random(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, dtype="float32")

        self.x, self.h, self.delta = (random(p.timesteps, p.batch, n) for n in (p.input_dim, p.units, width))
        self.w, self.u = random(p.timesteps, p.input_dim, width), random(p.timesteps, p.units, width)
        self.out, self.upstream = random(p.batch, width), random(p.batch, p.units)
        self.dw, self.du = np.empty_like(self.w), np.empty_like(self.u)

    def forward(self) -> None:
        for x, w, h, u in zip(self.x, self.w, self.h, self.u, strict=True):
            np.matmul(x, w, out=self.out)
            np.matmul(h, u, out=self.out)

    def gradients(self) -> None:
        self.forward()
        backward = zip(self.x, self.h, self.delta, self.u, self.dw, self.du, strict=True)
        for x, h, delta, u, dw, du in backward:
            np.matmul(delta, u.T, out=self.upstream)
            np.matmul(x.T, delta, out=dw)
            np.matmul(h.T, delta, out=du)

    def step(self) -> None:
        self.gradients()
        for weight, gradient in ((self.w, self.dw), (self.u, self.du)):
            np.copyto(weight, gradient)
            np.copyto(gradient, weight)
            half = len(weight) // 2
            np.copyto(weight[:half], gradient[:half])


def contestants(problem: Problem) -> dict[str, tuple]:
    """What this library enters: name, and its kind and maker."""
    return {"products alone": ("floor", Floor)}
