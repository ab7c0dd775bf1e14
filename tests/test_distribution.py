"""Training on several devices, with what Keras and TensorFlow have for it, equals training on one.

Devices must be configured before TensorFlow or JAX starts. So this file, run as a script, is also what
trains on two of them: `python test_distribution.py FUNCTION FILE ...`.
"""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
from argparse import Namespace

import h5py
import keras
import numpy as np
import pytest
from conftest import BACKEND

from untied_rnn import PerTimestep, UntiedSimpleRNN

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
B, T, I, U = 8, 4, 3, 6  # noqa: E741 (the letters of the formulas)
CLOSE = {"rtol": 0, "atol": 1e-5}
FAST = "--xla_backend_optimization_level=0"  # to compile, which is most of what these tests take
FORMS = {
    "written out": {"unroll": True},
    "loop": {"unroll": False},
    "per timestep": {"optimizer": lambda: PerTimestep(keras.optimizers.Lamb(0.1))},
}
LAYOUTS = {"timesteps": ("model", None, None), "units": (None, None, "model")}

on_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="`tf.distribute` is TensorFlow's")
on_jax = pytest.mark.skipif(BACKEND != "jax", reason="`keras.distribution` spans devices on JAX")


def run(script, *arguments, **environment):
    """Runs a script in processes of their own, of which none is left behind."""
    process = subprocess.Popen(
        [sys.executable, script, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": BACKEND} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # what it starts in turn is in its group
    )
    try:
        output, _ = process.communicate(timeout=300)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        error.add_note(output)
        raise
    assert process.returncode == 0, output
    return output


def train(halves=slice(None), optimizer=lambda: keras.optimizers.SGD(0.1, momentum=0.9), **options):
    """A model after four steps of 8 samples, or of the halves of them that `halves` selects.

    By gradient descent, for which, unlike for Adam, the gradient must also be of the right size.
    """
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(4, 2, B // 2, *shape)).astype("float32") for shape in ((T, I), (1,)))
    x, y = (np.concatenate(np.concatenate(a[:, halves])) for a in (x, y))
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((T, I)), UntiedSimpleRNN(U, **options), keras.layers.Dense(1)])
    # On TensorFlow XLA takes longer to compile than these few steps.
    model.compile(optimizer(), "mse", jit_compile=BACKEND == "jax")
    model.fit(x, y, batch_size=len(x) // 4, shuffle=False, verbose=0)
    return model


# What a script does on two devices.


def mirrored(path, form):
    import tensorflow as tf

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        np.savez(path, *train(**FORMS[form]).get_weights())


def sharded(path):
    mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"))
    results = {}
    for axis, layout in LAYOUTS.items():
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[".*untied_simple_rnn.*/(recurrent_)?kernel"] = layout
        layouts[".*untied_simple_rnn.*/bias"] = (layout[0], layout[2])
        for form, options in FORMS.items():
            with keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch").scope():
                model = train(**options)
            for i, weight in enumerate(model.weights):
                shards = [shard.data.shape for shard in weight.value.addressable_shards]
                results |= {f"{axis}, {form}, {i}": weight.numpy(), f"shards: {axis}, {form}, {i}": shards}
    np.savez(path, **results)


# The tests.


@on_tensorflow
@pytest.mark.parametrize("form", ["loop", pytest.param("per timestep", marks=pytest.mark.release)])
def test_mirrored_strategy_equals_one_device(form, tmp_path):
    run(__file__, "mirrored", tmp_path / "weights.npz", form)
    with np.load(tmp_path / "weights.npz") as arrays:
        received = list(arrays.values())
    # The first device by itself gets something else.
    both, first = (train(halves, **FORMS[form]).get_weights() for halves in (slice(None), [0]))
    for a, expected, alone in zip(received, both, first, strict=True):
        np.testing.assert_allclose(a, expected, **CLOSE)
        assert np.abs(a - alone).max() > 1e-3


@on_jax
def test_model_parallel_equals_one_device(tmp_path):
    flags = f"{FAST} --xla_force_host_platform_device_count=2"
    run(__file__, "sharded", tmp_path / "weights.npz", XLA_FLAGS=flags, JAX_PLATFORMS="cpu")
    shards = {  # of kernel, recurrent kernel, bias, and of the dense layer, which is on both devices
        "timesteps": [(T // 2, I, U), (T // 2, U, U), (T // 2, U), (U, 1), (1,)],
        "units": [(T, I, U // 2), (T, U, U // 2), (T, U // 2), (U, 1), (1,)],
    }
    with np.load(tmp_path / "weights.npz") as received:
        for (axis, shapes), (form, options) in itertools.product(shards.items(), FORMS.items()):
            for i, expected in enumerate(train(**options).get_weights()):
                case = f"{axis}, {form}, {i}"
                np.testing.assert_allclose(received[case], expected, **CLOSE, err_msg=case)
                np.testing.assert_array_equal(received[f"shards: {case}"], [shapes[i]] * 2, err_msg=case)


@on_jax
def test_two_processes_equal_one(tmp_path):
    rng = np.random.default_rng(0)
    digits = {f"x_{part}": rng.integers(0, 256, (128, 28, 28)).astype("uint8") for part in ("train", "test")}
    np.savez(tmp_path / "digits.npz", **digits, **{f"y{k[1:]}": rng.integers(0, 10, 128) for k in digits})
    names = ("untied_simple_rnn/vars/0", "untied_simple_rnn/vars/1", "untied_simple_rnn/vars/2")
    weights, losses = [], []
    for processes in ("1", "2"):
        path = tmp_path / f"{processes}.weights.h5"
        arguments = ("--data", tmp_path / "digits.npz", "--batch", 32, "--epochs", 1, "--out", path)
        output = run(EXAMPLES / "distributed.py", "--processes", processes, *arguments, XLA_FLAGS=FAST)
        losses.append(float(output.split("test loss ")[1].split(",")[0]))
        with h5py.File(path) as file:
            weights.append([file["layers"][name][()] for name in (*names, "dense/vars/0", "dense/vars/1")])
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, **CLOSE)
    assert losses[1] == pytest.approx(losses[0], abs=2e-4)


@pytest.fixture
def example():
    import distributed

    return distributed


@on_jax
def test_parts_of_two_processes_make_up_the_batches_of_one(example):
    def parts(processes, process):
        args = Namespace(seed=0, batch=4, processes=processes, process=process)
        return itertools.islice(example.own_parts(np.arange(10), -np.arange(10), args), 4)  # two epochs

    for whole, *halves in zip(parts(1, 0), parts(2, 0), parts(2, 1), strict=True):
        assert np.shape(halves) == (2, 2, 2)
        np.testing.assert_array_equal(whole, np.concatenate(halves, axis=1))


@on_jax
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "0"], "must be positive"),
        (["--process", "0"], "must be given together"),
        (["--process", "2", "--address", "localhost:1234"], "must be from 0 to 1, received 2"),
        (["--processes", "3", "--batch", "128"], "cannot be divided among 3 processes"),
        (["--out", "weights.npz"], "must end with .weights.h5"),
        (["--data", "no such file.npz"], "is not a digits file"),
    ],
)
def test_wrong_arguments_end_before_training(example, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["distributed.py", *arguments])
    with pytest.raises(SystemExit, match=message) as raised:
        example.main()
    assert "\n" not in raised.value.code
    assert raised.value.code.startswith("error: ")


if __name__ == "__main__":
    {"mirrored": mirrored, "sharded": sharded}[sys.argv[1]](*sys.argv[2:])
