"""Settings that every test runs under, whichever backend `KERAS_BACKEND` names."""

import gc
import os
import pathlib
from concurrent.futures import Executor, Future

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MPLBACKEND", "Agg")
# XLA does all that it does, but LLVM does not optimise the code: half the time of compiling.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# The tests compile many small programs again, in each process and after `clear_caches`. With files of them,
# JAX takes a quarter less of the processor's time for all tests, and less still where the files are there.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{pathlib.Path(__file__).parents[1]}/.pytest_cache/jax")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()
# Keras computes in float64 on TensorFlow alone; elsewhere its operations return float32.
DTYPE = "float64" if BACKEND == "tensorflow" else "float32"
EXACT = {"rtol": 1e-10, "atol": 1e-10} if BACKEND == "tensorflow" else {"rtol": 1e-4, "atol": 1e-5}
# Tracing makes millions of small objects. Looking through them for garbage, as often as Python does, takes a
# fifth of the time of many tests.
gc.freeze()
gc.set_threshold(100_000, 50, 10)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(1234)


@pytest.fixture(autouse=True)
def _few_programs_in_memory(request):
    yield
    # JAX keeps each program it compiled, some hundred memory maps a test: a process may have 65,530.
    if BACKEND == "jax" and request.session.items.index(request.node) % 100 == 99:
        import jax

        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(5678)


class InThisProcess(Executor):
    """In place of a `ProcessPoolExecutor`."""

    def __init__(self, *args, **kwargs):
        pass

    def submit(self, function, *args):
        future = Future()
        future.set_result(function(*args))
        return future
