"""Search of hidden sizes, layers and other hyperparameters with keras-tuner."""

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np

from untied_rnn import UntiedGRU, UntiedLSTM, UntiedSimpleRNN, _arguments, _checks
from untied_rnn._programs import Programs
from untied_rnn.sharing import SharingArgument

try:
    import keras_tuner
except ImportError as _error:
    # keras-tuner 1.4.8 imports six, which TensorFlow brings along, and does not say so.
    raise ImportError(
        "`untied_rnn.tuning` needs keras-tuner, which an installation without dependencies lacks. Install it "
        'with: pip install "keras-tuner[bayesian]" six'
    ) from _error

_LAYERS: dict[str, Callable[..., keras.Layer]] = {
    cls.__name__: cls for cls in (UntiedSimpleRNN, UntiedLSTM, UntiedGRU)
}


class UntiedRNNHyperModel(keras_tuner.HyperModel):
    r"""Untied layers with a Dense head, whose hidden size, kind and training keras-tuner searches.

    ```
    h = layer(units, sharing=sharing, dropout=dropout, ...)(x)     (num_layers times)
    y = Dense(num_classes or output_dim)(last h)
    ```

    For use with any tuner of keras-tuner. Each hyperparameter is given as one of

    - a list or tuple: the choices;
    - a `range`: integers from its first to its last element in its steps;
    - a dict: arguments of keras-tuner's `hp.Int` (if its bounds are integers) or `hp.Float`, such as
      `{"min_value": 1e-4, "max_value": 1e-2, "sampling": "log"}`;
    - anything else: a fixed value, which is not searched.

    Trials that differ in the learning rate alone, repetitions of a trial and Hyperband's later rounds
    train with the programs that were compiled for the first of them.

    Args:
        timesteps: Positive integer, the length of the sequences.
        input_dim: Positive integer, the number of features of a timestep.
        num_classes: Positive integer, the number of classes: the model outputs logits, is trained with
            the cross-entropy of integer labels, and reports `accuracy`.
        output_dim: Positive integer, in place of `num_classes`, the number of targets: the model is
            trained with the mean squared error, and reports `mean_absolute_error`.
        units: Hidden size of each layer.
        layer: Kind of all layers: `"UntiedSimpleRNN"`, `"UntiedLSTM"` or `"UntiedGRU"`; a list of these
            names, of which the tuner chooses one; or a function `(units, **arguments)` that returns a new
            layer, such as `lambda units, **arguments: UntiedRNN(keras.layers.LSTMCell(units), **arguments)`.
            Its arguments are `name`, `return_sequences` (`False` for the last layer alone),
            `layer_arguments`, and `sharing`, `dropout`, `recurrent_dropout` and `recurrent_initializer` where
            they are given. If the last layer returns all timesteps, as `UntiedDense` does, the head takes
            all of them, flattened.
        num_layers: Number of untied layers.
        sharing: What each layer's `sharing=` takes, such as `"tied"` or `LowRank(4)`; or a list of such
            values. What the tuner chooses from these are their texts, such as `"Blocks(size=7)"`, for which
            `hypermodel.sharings` has the sharings. If not given, layers are untied.
        dropout: Fraction of each layer's inputs to drop. By default 0, 0.1 or 0.2, unless `layer` is a
            function.
        recurrent_dropout: Fraction of each layer's state to drop. By default 0, 0.05 or 0.1, unless `layer`
            is a function.
        recurrent_initializer: Initializer of each layer's recurrent matrices. By default the layer's; for
            `UntiedSimpleRNN` alone, whose matrices have no parts for gates, orthogonal or identity.
        optimizer: Optimizer, a name or (fixed) an instance, whose learning rate is not used.
        learning_rate: Learning rate of the first step: change it later with a callback.
        batch_size: Batch size of `fit`. `None` leaves it to the data, as a `tf.data.Dataset` needs.
        seed: Integer; what a trial computes is then a function of its hyperparameters alone, in
            whatever process and order trials run. (`build` and `fit` call
            `keras.utils.set_random_seed`.) Repetitions (`executions_per_trial`) take `seed + 1`, ...
        **layer_arguments: Further arguments of each layer, such as `activation`.

    Raises:
        TypeError, ValueError: For an argument outside of what is said above, or one that a layer lacks.
        keras_tuner.errors.FatalTypeError: If a function returns no layer.
        keras_tuner.errors.FatalValueError: From `build`, if a function's layer outputs something else than
            one timestep or all of them, or not all of them with `return_sequences`.
        keras_tuner.errors.FailedTrialError: From `fit`, if the training diverges. The tuner marks that
            trial as failed, like one that runs out of memory, and continues.
        keras_tuner.errors.FatalValueError: From `fit`, if it is given a batch size beside this one.

    Example:

    ```python
    import keras_tuner
    import numpy as np
    from untied_rnn.tuning import UntiedRNNHyperModel

    hypermodel = UntiedRNNHyperModel(28, 28, num_classes=10, units=range(8, 33, 8), seed=0)
    tuner = keras_tuner.RandomSearch(
        hypermodel, "val_accuracy", max_trials=2, seed=1, directory="out"
    )
    rows, labels = np.random.random((256, 28, 28)), np.random.randint(10, size=256)
    tuner.search(rows, labels, epochs=2, validation_split=0.25, verbose=0)
    (best,) = tuner.get_best_hyperparameters()
    model = hypermodel.build(best)
    hypermodel.fit(best, model, rows, labels, epochs=4, verbose=0)  # trained anew
    ```

    keras-tuner resumes the search that it finds in `directory`. Give another search its own `project_name`.

    References:
        - [Li et al., 2018, Hyperband](https://jmlr.org/papers/v18/16-558.html)
        - [KerasTuner](https://keras.io/keras_tuner/)
    """

    timesteps: int
    input_dim: int
    is_classifier: bool
    outputs: int
    seed: int | None
    layer_arguments: dict[str, Any]
    sharings: dict[str, Any]
    layer_ranges: dict[str, Any]
    ranges: dict[str, Any]

    def __init__(
        self,
        timesteps: int,
        input_dim: int,
        num_classes: int | None = None,
        output_dim: int | None = None,
        *,
        units: Any = range(16, 257, 16),
        layer: str | Sequence[str] | Callable[..., keras.Layer] = "UntiedSimpleRNN",
        num_layers: Any = (1, 2),
        sharing: SharingArgument | Sequence[SharingArgument] | None = None,
        dropout: Any = None,
        recurrent_dropout: Any = None,
        recurrent_initializer: Any = None,
        optimizer: Any = ("adam", "rmsprop"),
        learning_rate: Any = (5e-4, 1e-3, 2e-3, 4e-3),
        batch_size: Any = (32, 64, 128),
        seed: int | None = None,
        **layer_arguments: Any,
    ):
        super().__init__()
        if (num_classes is None) == (output_dim is None):
            raise ValueError(
                "Expected one of `num_classes` and `output_dim`. "
                f"Received: num_classes={num_classes}, output_dim={output_dim}"
            )
        self.timesteps = _checks.positive_integer("timesteps", timesteps)
        self.input_dim = _checks.positive_integer("input_dim", input_dim)
        self.is_classifier = output_dim is None
        name, outputs = ("num_classes", num_classes) if self.is_classifier else ("output_dim", output_dim)
        self.outputs = _checks.positive_integer(name, outputs)
        self.seed = _arguments.check("seed", seed)
        self.layer_arguments = layer_arguments
        self.sharings = _sharings(sharing)
        names = _names(layer)
        of_layers = {
            "sharing": list(self.sharings) if _is_list(sharing) else next(iter(self.sharings), None),
            "dropout": dropout,
            "recurrent_dropout": recurrent_dropout,
            "recurrent_initializer": recurrent_initializer,
        }
        given = {name: values for name, values in of_layers.items() if values is not None}
        self.layer_ranges = {**_default_ranges(names), **given}
        self.ranges = {
            "units": units,
            "layer": layer,
            "num_layers": num_layers,
            **self.layer_ranges,
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
        }
        for name, values in self.ranges.items():
            for value in _extremes(name, values):
                if name not in ("layer", "sharing"):  # which are checked already
                    _arguments.check(name, value)
        first = self._chosen(keras_tuner.HyperParameters())  # with keras-tuner's own checks
        kinds: Sequence[Any] = names or [layer]
        for kind, text in itertools.product(kinds, self.sharings or [""]):
            chosen = {**first, "layer": kind, "sharing": text}
            self._layer(chosen, return_sequences=True, name="untied_0")
        self._programs = Programs()
        self._executions: collections.Counter = collections.Counter()

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """The compiled model of `hp`, with new weights."""
        chosen = self._chosen(hp)
        self._seeding(hp)()
        sequences = states = keras.Input((self.timesteps, self.input_dim), name="sequences")
        for i in range(chosen["num_layers"]):
            return_sequences = i < chosen["num_layers"] - 1
            layer = self._layer(chosen, return_sequences=return_sequences, name=f"untied_{i}")
            states = layer(states)
            rank = len(getattr(states, "shape", ()))
            if rank != 3 and (return_sequences or rank != 2):
                # Fatal, since with another number of layers a trial might not show it.
                raise keras_tuner.errors.FatalValueError(
                    "Expected a layer that outputs all timesteps, (batch, timesteps, features), or without "
                    f"`return_sequences` the last one, (batch, features). Received: {layer}, which outputs "
                    f"{states} with return_sequences={return_sequences}"
                )
        if len(states.shape) == 3:
            states = keras.layers.Flatten(name="all_timesteps")(states)
        head = keras.layers.Dense(self.outputs, name="head")
        model = keras.Model(sequences, head(states), name="untied_rnn")
        optimizer = keras.optimizers.serialize(keras.optimizers.get(chosen["optimizer"]))
        optimizer["config"]["learning_rate"] = chosen["learning_rate"]
        if self.is_classifier:
            loss, metric = keras.losses.SparseCategoricalCrossentropy(from_logits=True), "accuracy"
        else:
            loss, metric = keras.losses.MeanSquaredError(), "mean_absolute_error"
        model.compile(keras.optimizers.get(optimizer), loss, metrics=[metric])
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """`model.fit` with the batch size of `hp`; if the loss diverges, the trial has failed."""
        if "batch_size" in kwargs:
            raise keras_tuner.errors.FatalValueError(
                "Expected the batch size as an argument of `UntiedRNNHyperModel`. "
                f"Received: batch_size={kwargs['batch_size']} beside it."
            )
        set_seed = self._seeding(hp)
        set_seed()
        self._executions[_identity(hp)] += 1
        callbacks = [*(kwargs.pop("callbacks", None) or []), keras.callbacks.TerminateOnNaN()]
        if keras.backend.backend() == "jax":
            # Once more: JAX draws an order of the samples to build a model, and `program` may be built.
            callbacks.append(keras.callbacks.LambdaCallback(on_train_begin=lambda logs: set_seed()))
        chosen = self._chosen(hp)
        with self._programs.of(model, chosen) as program:
            history = program.fit(*args, batch_size=chosen["batch_size"], callbacks=callbacks, **kwargs)
        if not np.all(np.isfinite(history.history["loss"])):
            raise keras_tuner.errors.FailedTrialError(f"The loss diverged: {history.history['loss']}")
        return history

    def _layer(self, chosen: dict[str, Any], **own: Any) -> keras.Layer:
        """A new layer of what is chosen, with arguments that are its own."""
        make = _LAYERS.get(chosen["layer"], chosen["layer"])
        searched = {name: chosen[name] for name in self.layer_ranges}
        if "sharing" in searched:
            searched["sharing"] = self._sharing(searched["sharing"])
        layer = make(chosen["units"], **own, **searched, **self.layer_arguments)
        if not isinstance(layer, keras.Layer):
            raise keras_tuner.errors.FatalTypeError(
                "Expected `layer` to return a `keras.Layer`. "
                f"Received: layer={make!r}, which returned {layer!r}"
            )
        return layer

    def _sharing(self, text: str) -> Any:
        if text in self.sharings:
            return self.sharings[text]
        raise keras_tuner.errors.FatalValueError(
            "Expected a search that is resumed with the `sharing` that it was begun with. "
            f"Received: {text}, which is none of {', '.join(self.sharings)}"
        )

    def _chosen(self, hp: keras_tuner.HyperParameters) -> dict[str, Any]:
        return {name: self._choose(hp, name) for name in self.ranges}

    def _choose(self, hp: keras_tuner.HyperParameters, name: str) -> Any:
        """The value of a hyperparameter; what is searched is registered with `hp` on the way."""
        values = self.ranges[name]
        if isinstance(values, range):
            return hp.Int(name, min(values), max(values), step=abs(values.step))
        if isinstance(values, dict):
            integers = all(isinstance(values.get(f"{end}_value"), int) for end in ("min", "max"))
            return (hp.Int if integers else hp.Float)(name, **values)
        return hp.Choice(name, list(values)) if _is_list(values) else values

    def _seeding(self, hp: keras_tuner.HyperParameters) -> Callable[[], None]:
        """A function that sets the seed of the next execution of `hp`, if there is one."""
        if self.seed is None:
            return lambda: None
        seed = self.seed + self._executions[_identity(hp)]
        return functools.partial(keras.utils.set_random_seed, seed)


def _is_list(values: Any) -> bool:
    return isinstance(values, (list, tuple))


def _names(layer: Any) -> list[str]:
    """The names of the layers to choose from; none for a function."""
    if callable(layer):
        return []
    names = list(layer) if _is_list(layer) else [layer]
    if not names or any(name not in list(_LAYERS) for name in names):
        raise ValueError(
            f"Expected `layer` to be one of {', '.join(_LAYERS)}, a list of these names, or a function "
            f"`(units, **arguments)` that returns a layer. Received: layer={layer!r}"
        )
    return names


def _sharings(values: Any) -> dict[str, Any]:
    """Sharings by their texts, as keras-tuner chooses from strings and numbers alone; none for `None`."""
    given = [] if values is None else values if _is_list(values) else [values]
    if None in given:
        raise TypeError(f"Expected `Untied()` for untied layers. Received: sharing={values!r}")
    sharings = {_text(value): value for value in (_arguments.check("sharing", value) for value in given)}
    if len(sharings) < len(given):
        raise ValueError(
            "Expected sharings that differ, in the names of their functions as well. "
            f"Received: sharing={values!r}, of which there are {', '.join(sharings)}"
        )
    return sharings


def _text(value: Any) -> str:
    """In full, and the same in every process, as `repr` may not be: `Basis(size=4, kind=cosines)`."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: _text(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return f"{type(value).__name__}({', '.join(f'{name}={text}' for name, text in fields.items())})"
    if isinstance(value, dict):
        return str({name: _text(part) for name, part in value.items()})
    return getattr(value, "__name__", repr(value))


def _default_ranges(names: list[str]) -> dict[str, Any]:
    """What is searched of layers with these names, all of whose arguments are known."""
    ranges: dict[str, Any] = {}
    if names:
        ranges = {"dropout": (0.0, 0.1, 0.2), "recurrent_dropout": (0.0, 0.05, 0.1)}
    if set(names) == {"UntiedSimpleRNN"}:
        ranges["recurrent_initializer"] = ("orthogonal", "identity")
    return ranges


def _extremes(name: str, values: Any) -> Iterable[Any]:
    """Those of a hyperparameter's values that are all good only if all others are too."""
    if isinstance(values, dict):
        return values.get("min_value"), values.get("max_value")
    if not isinstance(values, (range, list, tuple)):
        return (values,)
    if not values:
        raise ValueError(f"Expected at least one value of `{name}`. Received: {name}={values!r}")
    return (min(values), max(values)) if isinstance(values, range) else values


def _identity(hp: keras_tuner.HyperParameters) -> str:
    return json.dumps(hp.values, sort_keys=True)
