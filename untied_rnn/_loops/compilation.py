"""What compiles a layer's computation, and the form that it takes for that compiler."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import keras

# XLA; a plain graph of TensorFlow, made by what calls the layer (`fit`, a `tf.function`) and run many times;
# or nothing around the layer, which is called eagerly.
Compiler = Literal["xla", "graph", "eager"]


class Program:
    """A pure function that compiles itself where nothing around it does.

    On TensorFlow an eager call runs it as a `tf.function`, and XLA compiles that function, also as a part
    of a plain graph, if `jit_compile` says so. Within a program for XLA it adds nothing, for on a GPU
    TensorFlow compiles a program within a program again at every training step: measured on an H100, one of
    28 timesteps took 1,590 ms in place of 4. On other backends it is the function itself.

    Args:
        function: Pure function of tensors, nested or `None`, and of hashable Python values, each new
            combination of which is traced once.
        jit_compile: Whether XLA compiles it. `"auto"` does so on a GPU, where a loop of small kernels becomes
            a few. On a CPU each new shape would cost a compilation of 0.1 to 1.5 seconds
            (`python tests/benchmarks/compilation.py`), and within a plain graph a training step takes 0.9 to
            1.5 of the time (`python tests/benchmarks/plain_fit.py`).
    """

    def __init__(self, function: Callable, jit_compile: bool | str):
        self.function = function
        # On TensorFlow alone: to list JAX's devices would start it, and `keras.distribution.initialize` must
        # come before.
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._use_xla = has_gpu() if jit_compile == "auto" else bool(jit_compile)
            # TensorFlow warns of frequent tracing by code object, which all layers share; a `partial` has
            # none.
            self._graph = tf.function(
                partial(function), jit_compile=self._use_xla, reduce_retracing=True, autograph=False
            )

    @property
    def compiler(self) -> Compiler:
        """What compiles a call that is made here."""
        backend = keras.backend.backend()
        if backend == "tensorflow":
            return "xla" if self._use_xla else _around()
        return "xla" if backend == "jax" else "eager"

    def __call__(self, *args: Any) -> Any:
        if keras.backend.backend() != "tensorflow" or _around() == "xla" or self.compiler == "graph":
            return self.function(*args)
        return self._graph(*args)


def _around() -> Compiler:
    """What compiles what TensorFlow runs here, if the layer does nothing."""
    import tensorflow as tf

    # Private, since there is no public way to ask. TensorFlow's own operations ask so.
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    if not tf.inside_function():
        return "eager"
    return "xla" if GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()) else "graph"


class WrittenOut(NamedTuple):
    """Up to how many timesteps are written out rather than a loop, by what compiles them.

    Written out, each product and its gradient are nodes of their own, which run on all cores and need no
    copies of slices. A loop keeps the program, and its compilation, as small for any number of timesteps.
    """

    xla: int
    graph: int
    eager: int


def fastest_form(timesteps: int | None, compiler: Compiler, few: WrittenOut) -> bool | int:
    """What `unroll="auto"` stands for: few timesteps are written out, more are a loop.

    On a GPU XLA takes long to compile what is written out, and four timesteps in an iteration of a loop are
    almost as fast. Measured on an H100, a training step of 28 timesteps of 50 units on TensorFlow: one, four
    in an iteration, and all written out take 2.16, 0.71 and 0.52 ms, and the first call 2, 2 and 59 s. On
    JAX, with an LSTM of 128 units, four take 0.72 of the time of one, and eight gain no more.
    """
    if compiler == "xla" and has_gpu():
        return 4
    return timesteps is not None and timesteps <= getattr(few, compiler)


def has_gpu() -> bool:
    # Torch runs no loop, and Keras lists no devices for it.
    devices = [] if keras.backend.backend() == "torch" else keras.distribution.list_devices()
    return any(device.startswith("gpu") for device in devices)
