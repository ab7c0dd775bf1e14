"""TensorFlow: this layer, the notebook's way, a list of cells, and Keras's tied layer."""

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from problems import EPSILON, RHO, WEIGHTS, Problem

from contestants.fitting import Fitting
from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN

# Cell: this layer, Keras's tied one and its arguments, Keras's cell.
LAYERS = {
    "simple": (UntiedSimpleRNN, keras.layers.SimpleRNN, {}, keras.layers.SimpleRNNCell),
    "lstm": (UntiedLSTM, keras.layers.LSTM, {"use_cudnn": False}, keras.layers.LSTMCell),
    "gru": (UntiedGRU, keras.layers.GRU, {"use_cudnn": False}, keras.layers.GRUCell),
}

tf.get_logger().setLevel("ERROR")  # each contestant is traced anew: that is meant


class Contestant:
    """Subclasses define `make()`, of `self.variables` (W, U and b, in one piece or many), and `state(x)`."""

    tied = False

    def __init__(self, problem: Problem, jit_compile: bool):
        self.problem, self.jit_compile = problem, jit_compile
        self.x, self.y = map(tf.constant, problem.data())
        self.make()
        self._forward, self._gradients, self._step = (
            tf.function(function, jit_compile=jit_compile, autograph=False)
            for function in (self.state, self._loss_and_gradients, self._update)
        )

    def apply(self, gradients: list[tf.Tensor]) -> None:
        self.optimizer.apply(gradients, self.variables)

    def build_optimizer(self) -> None:
        self.optimizer = keras.optimizers.RMSprop(self.problem.learning_rate, rho=RHO, epsilon=EPSILON)
        self.optimizer.build(self.variables)

    def _loss_and_gradients(self, x: tf.Tensor, y: tf.Tensor) -> tuple:
        variables = [v.value if isinstance(v, keras.Variable) else v for v in self.variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.reduce_sum((self.state(x) - y) ** 2, axis=1)) / 2
        return loss, tape.gradient(loss, variables)

    def _update(self, x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        loss, gradients = self._loss_and_gradients(x, y)
        self.apply(gradients)
        return loss

    def forward(self) -> np.ndarray:
        return self._forward(self.x).numpy()

    def gradients(self) -> list[tf.Tensor]:
        loss, gradients = self._gradients(self.x, self.y)
        loss.numpy()
        return gradients

    def step(self) -> float:
        return float(self._step(self.x, self.y))

    def results(self) -> dict[str, np.ndarray]:
        state, gradients = self.forward(), self.gradients()
        self.step()
        return {
            "state": state,
            **{f"gradient of {name}": g for name, g in zip(WEIGHTS, self.stacked(gradients), strict=True)},
            **{f"updated {name}": w for name, w in zip(WEIGHTS, self.current_weights(), strict=True)},
        }

    def current_weights(self) -> list[np.ndarray]:
        return self.stacked(self.variables)

    def stacked(self, tensors: list) -> list[np.ndarray]:
        """W, U and b, each as one array, from a list like `self.variables`."""
        return [np.asarray(keras.ops.convert_to_numpy(tensor)) for tensor in tensors]


class KerasModel(Fitting, Contestant):
    """A layer as users have it: in a model, with a Keras optimizer. Subclasses define `layer()`.

    Args:
        problem: What it computes.
        jit_compile: Whether XLA compiles `forward()`, `gradients()` and `step()`.
        options: Arguments of the layer.
        compile_options: Arguments of `model.compile`, for `fit` and `predict`.
    """

    def __init__(
        self,
        problem: Problem,
        jit_compile: bool,
        options: dict[str, Any] | None = None,
        compile_options: dict[str, Any] | None = None,
    ):
        self.options, self.compile_options = options or {}, compile_options or {}
        super().__init__(problem, jit_compile)

    def make(self) -> None:
        p = self.problem
        layer = self.layer()
        self.model = keras.Sequential([keras.Input((p.timesteps, p.input_dim)), layer])
        weights = p.weights(self.tied)
        layer.set_weights([weights[name][0] if self.tied else weights[name] for name in WEIGHTS])
        self.variables = layer.trainable_variables
        self.build_optimizer()

    def state(self, x: tf.Tensor) -> tf.Tensor:
        return self.model(x)

    # What latency is measured by.

    def model_call(self) -> np.ndarray:
        return self.model(self.x).numpy()

    def predict_on_batch(self) -> np.ndarray:
        if not self.model.compiled:
            self.model.compile(jit_compile=self.jit_compile)
        return self.model.predict_on_batch(self.x)


class Untied(KerasModel):
    def layer(self) -> keras.Layer:
        return LAYERS[self.problem.cell][0](self.problem.units, **self.options)


class Tied(KerasModel):
    tied = True
    unroll = False

    def layer(self) -> keras.Layer:
        _, layer, options, _ = LAYERS[self.problem.cell]
        return layer(self.problem.units, unroll=self.unroll, **{**options, **self.options})


class TiedUnrolled(Tied):
    unroll = True


class Notebook(Contestant):
    """One variable per weight and timestep, written out, updated by TensorFlow's own RMSprop kernel."""

    def make(self) -> None:
        weights = self.problem.weights()
        self.variables = [tf.Variable(w) for name in WEIGHTS for w in weights[name]]
        self.mean_squares = [tf.Variable(tf.zeros_like(v)) for v in self.variables]
        self.momentums = [tf.Variable(tf.zeros_like(v)) for v in self.variables]

    def state(self, x: tf.Tensor) -> tf.Tensor:
        timesteps = self.problem.timesteps
        w, u, b = (self.variables[i * timesteps : (i + 1) * timesteps] for i in range(3))
        h = tf.zeros((self.problem.batch, self.problem.units))
        for t, row in enumerate(tf.unstack(x, axis=1)):
            h = tf.tanh(tf.matmul(row, w[t]) + tf.matmul(h, u[t]) + b[t])
        return h

    def apply(self, gradients: list[tf.Tensor]) -> None:
        for v, ms, momentum, g in zip(
            self.variables, self.mean_squares, self.momentums, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyRMSProp(
                var=v.handle,
                ms=ms.handle,
                mom=momentum.handle,
                lr=self.problem.learning_rate,
                rho=RHO,
                momentum=0.0,
                epsilon=EPSILON,
                grad=g,
            )

    def stacked(self, tensors: list) -> list[np.ndarray]:
        timesteps = self.problem.timesteps
        arrays = [tensor.numpy() for tensor in tensors]
        return [np.stack(arrays[i * timesteps : (i + 1) * timesteps]) for i in range(3)]


class CellList(Contestant):
    """A Python list of Keras's cells, with a Keras optimizer."""

    def make(self) -> None:
        p = self.problem
        weights = p.weights()
        *_, cell = LAYERS[p.cell]
        self.cells = [cell(p.units) for _ in range(p.timesteps)]
        for t, cell in enumerate(self.cells):
            cell.build((p.batch, p.input_dim))
            cell.set_weights([weights[name][t] for name in WEIGHTS])
        self.variables = [variable for cell in self.cells for variable in cell.trainable_variables]
        self.build_optimizer()

    def state(self, x: tf.Tensor) -> tf.Tensor:
        states = self.cells[0].get_initial_state(self.problem.batch)
        for cell, row in zip(self.cells, tf.unstack(x, axis=1), strict=True):
            _, states = cell(row, states)
        return states[0]

    def stacked(self, tensors: list) -> list[np.ndarray]:
        arrays = [keras.ops.convert_to_numpy(tensor) for tensor in tensors]
        return [np.stack(arrays[i::3]) for i in range(3)]


def contestants(problem: Problem) -> dict[str, tuple]:
    """What this library enters: name, and its kind and maker."""
    tied = LAYERS[problem.cell][1].__name__
    entries = {
        "this layer": ("ours", Untied),
        "variable per timestep": ("untied", Notebook),
        "list of cells": ("untied", CellList),
        f"tied {tied}": ("tied", Tied),
        f"tied {tied}, unrolled": ("tied", TiedUnrolled),
    }
    if problem.cell != "simple":  # the notebook has no other
        del entries["variable per timestep"]
    return {
        f"{name}, TensorFlow{' XLA' if xla else ''}": (kind, partial(maker, jit_compile=xla))
        for name, (kind, maker) in entries.items()
        for xla in (True, False)
    }


def gpu_contestants(problem: Problem) -> dict[str, tuple]:
    """What `gpu.py` enters from this library: name, and its stage, mode and maker."""
    untied, simple = partial(Untied, jit_compile=True), problem.cell == "simple"
    by_keras = partial(Tied, jit_compile=False, options={} if simple else {"use_cudnn": "auto"})
    tied = f"tied {LAYERS[problem.cell][1].__name__}"
    entries = {
        "this layer, TensorFlow XLA": ("default", "step", untied),
        "this layer, TensorFlow fit": ("default", "fit", untied),
        "this layer, TensorFlow": ("default", "step", partial(Untied, jit_compile=False)),
        "this layer, jit_compile=False, TensorFlow fit": (
            *("default", "fit"),
            partial(untied, options={"jit_compile": False}),
        ),
        f"{tied}, TensorFlow": ("peer", "step", by_keras),
        f"{tied}, TensorFlow fit": ("peer", "fit", by_keras),
        f"{tied}, TensorFlow XLA": ("form", "step", partial(Tied, jit_compile=True)),
        "this layer, TensorFlow fit, compile(jit_compile=False)": (
            *("peer", "fit"),
            partial(untied, compile_options={"jit_compile": False}),
        ),
    }
    written_out = "slow" if problem.timesteps > 100 else "peer"  # to compile
    for name, maker in (("variable per timestep", Notebook), ("list of cells", CellList)):
        for xla in (True, False):
            if simple or maker is not Notebook:  # the notebook has no other
                kind = " XLA" if xla else ""
                entries[f"{name}, TensorFlow{kind}"] = written_out, "step", partial(maker, jit_compile=xla)
    for unroll in (4, 8, False, 14, 2, True):
        if unroll < problem.timesteps:  # more is `True`
            stage = "slow" if unroll is True else "form"
            form = partial(untied, options={"unroll": unroll})
            entries[f"this layer, unroll={unroll}, TensorFlow XLA"] = stage, "step", form
    return entries


def description() -> tuple[str, bool]:
    """Versions, device and precision; whether the device is a GPU."""
    build, gpus = tf.sysconfig.get_build_info(), tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus]
    tensor_float = "on" if tf.config.experimental.tensor_float_32_execution_enabled() else "off"
    return (
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"built for CUDA {build.get('cuda_version', '-')} and cuDNN {build.get('cudnn_version', '-')}, "
        f"on {', '.join(names) or 'the CPU'}, TensorFloat-32 {tensor_float}"
    ), bool(gpus)
