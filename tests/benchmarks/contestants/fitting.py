"""`fit` and `predict` of a contestant, on whichever backend Keras has."""

from collections.abc import Iterable
from functools import cached_property
from typing import Any, ClassVar

import keras
import numpy as np


def without_autotune(data: Any) -> Any:
    """A `tf.data.Dataset` that ends at once: its tuning thread, which may sleep a minute, is left out."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return data.with_options(options)


class Fitting:
    """Has a `problem` and a Keras `model`. One call is one `fit` or `predict`, of `fit_steps` batches."""

    fit_steps = 1
    compile_options: ClassVar[dict[str, Any]] = {}  # of `model.compile`

    @cached_property
    def batches(self) -> Iterable:
        """A few, of the same samples, from memory. As for users' arrays, their size is not static."""
        import tensorflow as tf

        if keras.backend.backend() != "tensorflow":
            tf.config.set_visible_devices([], "GPU")  # it only brings the data
        x, y = (np.concatenate([array] * 4) for array in self.problem.data())
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(self.problem.batch)
        return without_autotune(data.cache().repeat().prefetch(2))

    def compile(self) -> None:
        if not self.model.compiled:
            self.model.compile(keras.optimizers.RMSprop(), "mse", **self.compile_options)

    def fit_step(self) -> None:
        self.compile()
        self.model.fit(self.batches, steps_per_epoch=self.fit_steps, shuffle=False, verbose=0)

    def predict_batch(self) -> np.ndarray:
        self.compile()
        return self.model.predict(self.batches, steps=self.fit_steps, verbose=0)
