"""The matrix products of a training step, and nothing else, as each library computes them.

    python tests/benchmarks/products.py [--shapes S1 S4] [--rounds 11] [--smoke]

Five products for each timestep, none of which waits for another: what a library takes for these bounds
whatever is written in it. Prints the milliseconds of all of them, and over NumPy's.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

# As in workers.py, before the libraries are imported.
os.environ.pop("OPENBLAS_CORETYPE", None)
os.environ.pop("OPENBLAS_L2_SIZE", None)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from contestants.with_numpy import Floor
from problems import SHAPES, TINY, Problem
from workers import seconds_per_call


def products(xp: Any, operands: list) -> list:
    """The products of `contestants.with_numpy.Floor`, from stacks of operands; the gradients stacked."""
    found = []
    for x, h, delta, w, u in zip(*map(xp.unstack, operands), strict=True):
        found.append(
            (
                xp.matmul(x, w) + xp.matmul(h, u),
                xp.matmul(delta, xp.transpose(u)),
                xp.matmul(xp.transpose(x), delta),
                xp.matmul(xp.transpose(h), delta),
            )
        )
    forward, backward, d_w, d_u = zip(*found, strict=True)
    return [sum(forward), sum(backward), xp.stack(d_w), xp.stack(d_u)]


def libraries(problem: Problem) -> dict[str, Callable[[], object]]:
    floor = Floor(problem)
    arrays = [floor.x, floor.h, floor.delta, floor.w, floor.u]
    tensors = [tf.constant(array) for array in arrays]
    plain, xla = (
        tf.function(lambda *tensors: products(tf, tensors), jit_compile=jit, autograph=False)
        for jit in (False, True)
    )
    found = {
        "NumPy": floor.gradients,
        "TensorFlow": lambda: plain(*tensors)[0].numpy(),
        "TensorFlow XLA": lambda: xla(*tensors)[0].numpy(),
    }
    try:
        import jax
    except ImportError:
        return found
    jitted = jax.jit(lambda *tensors: products(jax.numpy, tensors))
    on_jax = jax.device_put(arrays)
    return {**found, "JAX": lambda: jax.block_until_ready(jitted(*on_jax))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S1", "S4", "S6"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, one round")
    args = parser.parse_args()
    problems = {"tiny": TINY} if args.smoke else {shape: SHAPES[shape] for shape in args.shapes}
    rounds, at_least = (1, 0.0) if args.smoke else (args.rounds, 0.1)

    print("| products of | library | ms | over NumPy |\n| --- | --- | --- | --- |")
    for shape, problem in problems.items():
        calls = libraries(problem)
        times = np.array(
            [[seconds_per_call(call, at_least) for call in calls.values()] for _ in range(rounds)]
        )
        for name, column in zip(calls, times.T, strict=True):
            ratio = np.median(column / times[:, 0])
            print(f"| {shape} | {name} | {1e3 * np.median(column):.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
