"""Whether this machine computes the layers right: `python -m untied_rnn.selftest`.

Compilers return wrong numbers without an error: jaxlib in products of more than 32,768 rows
(https://github.com/jax-ml/jax/issues/39103), TensorFlow in programs within programs
(https://github.com/tensorflow/tensorflow/issues/118314). So the layers run here as in a training step, on the
device in use, and NumPy says in float64 what the numbers must be.
"""

import functools
import importlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from untied_rnn import UntiedDense, UntiedGRU, UntiedLSTM, UntiedRNN, UntiedSimpleRNN
from untied_rnn import _reference as reference

Array = np.ndarray
Arrays = dict[str, Array]
Shape = tuple[int, int, int]  # batch, timesteps, units

BACKEND = keras.backend.backend()
INPUT_DIM = 5
# Odd, so that vectors leave a remainder. The small batch runs in the default form, the large one in all.
SMALL: Shape = (7, 5, 13)
LARGE: Shape = (32_769, 3, 3)
# Rows that NumPy computes at a time.
ROWS = 4096


class Form(NamedTuple):
    """How a layer runs: its `unroll`, and whether XLA compiles the training step."""

    unroll: bool | str | None  # `UntiedDense` has none
    xla: bool

    def __str__(self) -> str:
        return ("XLA" if self.xla else "plain call") + (
            "" if self.unroll is None else f", unroll={self.unroll}"
        )


DEFAULT = Form("auto", xla=BACKEND == "jax")
FORMS: tuple[Form, ...] = {
    "tensorflow": (Form(False, False), Form(True, False), Form(False, True), Form(True, True)),
    "jax": (Form(False, True), Form(True, True)),
    "torch": (Form(False, False),),  # the same as written out
}[BACKEND]


class Result(NamedTuple):
    """The outputs or one gradient of a layer, where its error is largest."""

    layer: str
    form: Form
    shape: Shape
    quantity: str
    expected: float
    received: float
    error: float
    allowed: float

    @property
    def is_right(self) -> bool:
        return self.error <= self.allowed

    def __str__(self) -> str:
        batch, timesteps, units = self.shape
        return (
            f"{self.layer} ({self.form}; batch {batch}, {timesteps} timesteps, {units} units), "
            f"{self.quantity}: expected {self.expected:.7g}, received {self.received:.7g}. "
            f"The relative error is {self.error:.1e}; rounding explains {self.allowed:.1e}."
        )


class Subject(NamedTuple):
    """A layer of some number of units, and its function of inputs and named weights in NumPy."""

    make: Callable[..., keras.Layer]
    forward: Callable[..., Array]
    is_recurrent: bool = True


def _simple_rnn(x: Array, **weights: Any) -> Array:
    zeros = np.zeros((len(x), weights["recurrent_kernel"].shape[1]))
    return reference.simple_rnn(x, zeros, **weights)[0]


def _rnn(step: reference.Step, states: int, x: Array, **weights: Array) -> Array:
    zeros = np.zeros((len(x), weights["recurrent_kernel"].shape[1]))
    return reference.rnn(step, x, [zeros] * states, weights, range(x.shape[1]))[0]


def _rnn_of_cells(units: int, return_sequences: bool, **options: Any) -> UntiedRNN:
    cell = keras.layers.SimpleRNNCell(units, **options)
    return UntiedRNN(cell, return_sequences=return_sequences, dtype=options["dtype"])


SUBJECTS = {
    "UntiedSimpleRNN": Subject(
        functools.partial(UntiedSimpleRNN, output_units=3, output_initializer="zeros"), _simple_rnn
    ),
    "UntiedLSTM": Subject(UntiedLSTM, functools.partial(_rnn, reference.lstm_step, 2)),
    "UntiedGRU": Subject(UntiedGRU, functools.partial(_rnn, reference.gru_step, 1)),
    "UntiedRNN": Subject(_rnn_of_cells, _simple_rnn),
    "UntiedDense": Subject(UntiedDense, reference.dense, is_recurrent=False),
}


def run(name: str, shape: Shape, forms: Sequence[Form]) -> list[Result]:
    """Compares the outputs and gradients of the layer `name` of `SUBJECTS` with NumPy's."""
    batch, timesteps, units = shape
    make, forward, is_recurrent = SUBJECTS[name]
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Array:
        return rng.standard_normal(shape, "float32")

    # Weights are assigned below: JAX would take seconds to draw them.
    options: dict[str, Any] = {"kernel_initializer": "zeros", "dtype": "float32"}
    if is_recurrent:
        options |= {"recurrent_initializer": "zeros", "return_sequences": True}
    layer = make(units, **options)
    layer.build((batch, timesteps, INPUT_DIM))
    arrays = {"x": draw(batch, timesteps, INPUT_DIM)}
    for weight in layer.trainable_weights:
        arrays[weight.name] = draw(*weight.shape) / np.float32(np.sqrt(INPUT_DIM + units))
        weight.assign(arrays[weight.name])
    cotangent = draw(*layer.compute_output_shape(arrays["x"].shape))
    directions = {key: draw(*array.shape) for key, array in arrays.items()}
    expected, slopes = _by_numpy(forward, arrays, cotangent, directions)

    results = []
    for form in forms if is_recurrent else [Form(None, xla) for xla in sorted({form.xla for form in forms})]:
        if is_recurrent:
            layer.unroll = form.unroll
        computed = STEPS[BACKEND](layer, arrays["x"], cotangent, form.xla)
        outputs, gradients = keras.tree.map_structure(ops.convert_to_numpy, computed)
        result = functools.partial(_result, name, form, shape)
        terms = INPUT_DIM + units
        results.append(result("outputs", expected, outputs, np.abs(expected).max(), terms))
        for (key, slope), gradient in zip(slopes.items(), gradients, strict=True):
            received, size = _along(directions[key], gradient, len(slope))
            # The gradient of a weight is a sum over all rows.
            terms = INPUT_DIM + units + (0 if key == "x" else batch)
            results.append(
                result(f"gradient of {key}", slope, received, max(size, np.abs(slope).max()), terms)
            )
    return results


# A layer may return what is no number.
@np.errstate(invalid="ignore")
def _along(direction: Array, gradient: Array, rows: int) -> tuple[Array, float]:
    """Slopes of the rows along the direction, and the size of the longest row."""
    by_row = gradient.astype("float64").reshape(rows, -1)
    return (by_row * direction.reshape(rows, -1)).sum(axis=1), np.linalg.norm(by_row, axis=1).max()


@np.errstate(invalid="ignore")
def _result(
    layer: str,
    form: Form,
    shape: Shape,
    quantity: str,
    expected: Array,
    received: Array,
    size: float,
    terms: int,
) -> Result:
    errors = np.abs(received - expected) / size
    errors[np.isnan(errors)] = np.inf
    at = np.unravel_index(errors.argmax(), errors.shape)
    found = float(expected[at]), float(received[at]), float(errors[at])
    return Result(layer, form, shape, quantity, *found, allowed=_explained(terms))


def _explained(terms: int) -> float:
    """The relative error that rounding explains in a sum of that many products.

    The factors of a product are rounded, and the sum after each term. That goes up or down by chance, so that
    `n` errors make `sqrt(n)` of one. A timestep has several sums and hands its error on to the next, and
    compiled `tanh` and `exp` err in their last bits: hence the factor 8.
    """
    eps = 2**-23
    return 8 * ((2**-10 if _tensor_float_32() else eps) + eps * terms**0.5)


def _by_numpy(
    forward: Callable[..., Array], arrays: Arrays, cotangent: Array, directions: Arrays
) -> tuple[Array, Arrays]:
    """Outputs, and slopes of `sum(cotangent * outputs)` along a direction in each array; in each row of `x`.

    A random direction sees all elements of a gradient, for the price of one call.
    """
    outputs: list[Array] = []
    slopes: dict[str, list[Array]] = {key: [] for key in arrays}
    for start in range(0, len(cotangent), ROWS):
        rows = slice(start, start + ROWS)
        part = {
            key: (array[rows] if key == "x" else array).astype("float64") for key, array in arrays.items()
        }
        outputs.append(forward(**part))
        for key, direction in directions.items():
            change = reference.slope(forward, part, key, direction[rows] if key == "x" else direction)
            slopes[key].append((cotangent[rows] * change).sum(axis=(1, 2)))
    by_row = {key: np.concatenate(parts) for key, parts in slopes.items()}
    return np.concatenate(outputs), {
        key: slope if key == "x" else slope.sum(keepdims=True) for key, slope in by_row.items()
    }


# On each backend: outputs, and gradients of `sum(cotangent * outputs)` to `x` and the weights.


def _on_tensorflow(layer: keras.Layer, x: Array, cotangent: Array, xla: bool) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    def step(x: Any, cotangent: Any) -> tuple[Any, list[Any]]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
            loss = tf.reduce_sum(cotangent * outputs)
        return outputs, tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)])

    # `partial` for the reason that `compilation.Program` has.
    compiled = tf.function(functools.partial(step), jit_compile=True) if xla else step
    return compiled(tf.convert_to_tensor(x), tf.convert_to_tensor(cotangent))


def _on_jax(layer: keras.Layer, x: Array, cotangent: Array, xla: bool) -> tuple[Any, list[Any]]:
    import jax

    fixed = [variable.value for variable in layer.non_trainable_variables]

    def loss(arrays: list[Any], cotangent: Any) -> tuple[Any, Any]:
        outputs, _ = layer.stateless_call(arrays[1:], fixed, arrays[0])
        return (cotangent * outputs).sum(), outputs

    arrays = [ops.convert_to_tensor(x), *(weight.value for weight in layer.trainable_weights)]
    gradients, outputs = jax.jit(jax.grad(loss, has_aux=True))(arrays, cotangent)
    return outputs, gradients


def _on_torch(layer: keras.Layer, x: Array, cotangent: Array, xla: bool) -> tuple[Any, list[Any]]:
    import torch

    inputs = ops.convert_to_tensor(x).requires_grad_()
    outputs = layer(inputs)
    loss = (ops.convert_to_tensor(cotangent) * outputs).sum()
    arrays = [inputs, *(weight.value for weight in layer.trainable_weights)]
    return outputs, list(torch.autograd.grad(loss, arrays))


STEPS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def _device() -> str:
    """The backend's name of the device, such as `GPU:0`."""
    return str(ops.zeros(1).device).rpartition("device:")[2]


def _tensor_float_32() -> bool:
    """Whether a GPU may round the factors of products to TensorFloat-32, with 10 bits after the point."""
    if not any(name in _device().lower() for name in ("gpu", "cuda")):
        return False
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.experimental.tensor_float_32_execution_enabled())
    if BACKEND == "jax":
        import jax

        return jax.config.jax_default_matmul_precision not in ("highest", "float32")
    import torch

    return torch.get_float32_matmul_precision() != "highest"


def main() -> int:
    """Prints each layer's largest error and the verdict; returns 1 if rounding does not explain an error."""
    modules = ["untied_rnn", "keras", BACKEND, *(["jaxlib"] if BACKEND == "jax" else []), "numpy"]
    versions = [f"{name} {importlib.import_module(name).__version__}" for name in modules]
    print(", ".join([f"python {platform.python_version()}", *versions]))
    print(f"device {_device()} ({platform.machine()})")
    if _tensor_float_32():
        print(
            f"Products may be in TensorFloat-32: rounding explains relative errors up to {_explained(1):.1e}."
        )
    results = []
    for name in SUBJECTS:
        found = [*run(name, SMALL, [DEFAULT]), *run(name, LARGE, FORMS)]
        print(f"{name:16} largest relative error {max(result.error for result in found):.1e}", flush=True)
        results += found
    wrong = [result for result in results if not result.is_right]
    for result in wrong:
        print(result)
    count = f"{len(wrong)} of {len(results)} are wrong" if wrong else f"all {len(results)} are right"
    largest = max(result.error for result in results)
    print(f"{'WRONG' if wrong else 'RIGHT'}: {count}. The largest relative error is {largest:.1e}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
