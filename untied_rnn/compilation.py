"""The form that a layer's computation takes: written out or a loop, and compiled by what."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras


def compiled(function: Callable, jit_compile: bool | str) -> Callable:
    """`function` as a `tf.function` on TensorFlow; on other backends `function` itself.

    Args:
        function: Pure function of tensors, nested or `None`, and of hashable Python values, each new
            combination of which is traced once.
        jit_compile: Whether XLA compiles it; `"auto"` where that pays.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    use_xla = _xla_pays() if jit_compile == "auto" else jit_compile
    # TensorFlow warns of frequent tracing by code object, which all layers share; a `partial` has none.
    graph = tf.function(partial(function), jit_compile=use_xla, reduce_retracing=True, autograph=False)

    def call(*args: Any) -> Any:
        # Within another graph (`fit`, a user's `tf.function`, an export) only XLA needs a function of
        # its own. A plain closure also keeps Keras and SavedModel from tracking the function.
        return graph(*args) if use_xla or not tf.inside_function() else function(*args)

    return call


def _xla_pays() -> bool:
    """On a GPU always: a loop of small kernels becomes a few. On a CPU not outside of `fit`.

    Measured on 2 cores (`python tests/benchmarks/compilation.py`): there XLA takes 0.9 of the time of a
    plain `tf.function` where the timesteps are a loop, and a little longer where they are written out, but
    each new shape costs a compilation of 0.1 to 1.5 seconds, and nothing says that a shape will come back.
    Under `fit` Keras compiles the whole step anyway.
    """
    return _has_gpu()


def fastest_form(timesteps: int | None, few: int) -> bool | int:
    """What `unroll="auto"` stands for: up to `few` timesteps are written out, more are a loop.

    Written out, each product and its gradient are nodes of their own, which run on all cores and need no
    copies of slices; a loop keeps the program, and its compilation, as small for any number of timesteps.
    `few` is 32 for a simple RNN: measured on 2 cores under XLA, at 28 timesteps of 50 and 256 units and at 16
    of 500 a training step takes 0.8 to 0.95 of the time of the loop's. At 100 timesteps of 512 units it took
    25 seconds to compile.

    On a GPU an iteration runs four timesteps, for each has a cost of its own. Measured on an H100 with
    JAX, at 28 timesteps of 128 units: 0.72 (LSTM) and 0.66 (GRU) of a training step that runs one; eight gain
    no more.
    """
    if timesteps is not None and timesteps <= few:
        return True
    return 4 if _has_gpu() else False


def _has_gpu() -> bool:
    # Torch runs no loop, and Keras lists no devices for it.
    devices = [] if keras.backend.backend() == "torch" else keras.distribution.list_devices()
    return any(device.startswith("gpu") for device in devices)
