"""Pictures of how weights, states and gradients change along time (matplotlib, the extra `plot`).

Each function draws into the matplotlib axes `ax`, or into new ones, and returns them. New axes stand in a new
pyplot figure: a notebook shows it by itself, `plt.show()` elsewhere, and `plt.savefig(path)` writes it.
pyplot keeps its figures until `plt.close`; to draw many, give `ax`. Timesteps that share weights look alike.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from untied_rnn._layers.layer import UntiedLayer
from untied_rnn._layers.recurrent import RecurrentLayer
from untied_rnn._weights.moves import like

try:
    from matplotlib import pyplot
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
except ImportError as _error:
    raise ImportError(
        '`untied_rnn.plot` needs matplotlib. Install it with: pip install "untied-rnn[plot]"'
    ) from _error


def weight_norms(layer: keras.Layer, ax: Axes | None = None) -> Axes:
    """Draws the size of each timestep's weights.

    ```
    ||W_t||    for each kind of weight W (Frobenius norm)
    ```

    Args:
        layer: A built untied layer.
        ax: A `matplotlib.axes.Axes` to draw into. Default: new ones, in a new pyplot figure.

    Returns:
        The `matplotlib.axes.Axes` with one line for each kind of weight.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built; if `ax` is no single axes.

    Example:

    ```python
    from untied_rnn import UntiedSimpleRNN, plot

    layer = UntiedSimpleRNN(50)
    layer.build((None, 28, 28))
    ax = plot.weight_norms(layer)
    ```
    """
    weights = _along_time(layer)
    ax = _labelled(ax, "norm of the weights")
    for name, stack in weights.items():
        ax.plot(_norms(stack), ".-", label=name)
    ax.legend()
    return ax


def singular_values(layer: keras.Layer, weight: str = "recurrent_kernel", ax: Axes | None = None) -> Axes:
    """Draws the singular values of one kind of weight: how much each timestep stretches, and shrinks.

    ```
    s_1(W_t) >= s_2(W_t) >= ...
    ```

    For a recurrent matrix, values above one make states and gradients grow, those below let them fade.

    Args:
        layer: A built untied layer.
        weight: Name of a matrix of it, such as `"kernel"`.
        ax: A `matplotlib.axes.Axes` to draw into. Default: new ones, in a new pyplot figure.

    Returns:
        The `matplotlib.axes.Axes` with one line for the largest values of the timesteps, one for the
        second largest, and so on.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or has no matrix of that name;
            if `ax` is no single axes.
    """
    weights = _along_time(layer)
    matrices = [name for name, stack in weights.items() if stack.ndim == 3]
    if weight not in matrices:
        raise ValueError(f"Expected `weight` to be one of {matrices}. Received: weight={weight!r}")
    values = np.linalg.svd(weights[weight], compute_uv=False)
    ax = _labelled(ax, f"singular values of {weight}")
    colours = _colours(ax, "rank, from the largest", values.shape[1])
    for line, colour in zip(values.T, colours, strict=True):
        ax.plot(line, color=colour, linewidth=1)
    return ax


def neighbour_distances(layer: keras.Layer, ax: Axes | None = None) -> Axes:
    """Draws how far the weights of neighbouring timesteps are apart.

    ```
    ||W_t - W_{t-1}|| / sqrt(||W_t||^2 / 2 + ||W_{t-1}||^2 / 2)
    ```

    0 for equal weights, as in a tied layer; about sqrt(2) for independent weights, as after a random
    initialization.

    Args:
        layer: A built untied layer.
        ax: A `matplotlib.axes.Axes` to draw into. Default: new ones, in a new pyplot figure.

    Returns:
        The `matplotlib.axes.Axes` with one line for each kind of weight, from timestep 1.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or has one timestep only;
            if `ax` is no single axes.
    """
    weights = _along_time(layer)
    if len(next(iter(weights.values()))) < 2:
        raise ValueError("Expected a layer with two timesteps or more. Received: weights for one")
    ax = _labelled(ax, "distance from the timestep before")
    for name, stack in weights.items():
        squares, distance = _norms(stack) ** 2, _norms(np.diff(stack, axis=0))
        size = np.sqrt((squares[1:] + squares[:-1]) / 2)
        # Weights that are zero at both timesteps, such as new biases, are equal.
        relative = np.divide(distance, size, out=np.zeros_like(distance), where=size > 0)
        ax.plot(np.arange(1, len(stack)), relative, ".-", label=name)
    ax.set_ylim(bottom=0)
    ax.legend()
    return ax


def state_trajectories(layer: keras.Layer, sequences: Any, ax: Axes | None = None) -> Axes:
    """Draws each sequence's hidden-state trajectory in its first two principal components.

    ```
    p_t = (h_t - mean) P    with P the first two principal components of all h_t
    ```

    Args:
        layer: A built recurrent layer. Of an `UntiedRNN` the outputs of its cell are drawn, of an
            `UntiedLSTM` its hidden states. A stateful one starts from its states, which stay as they are.
        sequences: `(batch, timesteps, input_dim)`, a few of them.
        ax: A `matplotlib.axes.Axes` to draw into. Default: new ones, in a new pyplot figure.

    Returns:
        The `matplotlib.axes.Axes` with a line for each sequence, whose points are coloured by timestep.

    Raises:
        TypeError, ValueError: If `layer` is no recurrent untied layer, or not built, or its states have
            one component only; if `ax` is no single axes.
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"Expected an untied recurrent layer. Received: {layer!r}")
    states = _states(layer, sequences)
    if states.shape[-1] < 2:
        raise ValueError(f"Expected states of two components or more. Received: shape {states.shape}")
    centred = states - states.mean(axis=(0, 1))
    _, _, components = np.linalg.svd(centred.reshape(-1, states.shape[-1]), full_matrices=False)
    trajectories = centred @ components[:2].T
    ax = _labelled(ax, "second principal component", "first principal component")
    for trajectory in trajectories:
        ax.plot(*trajectory.T, color="0.8", linewidth=1, zorder=0)
    colours = _colours(ax, "timestep", states.shape[1])
    for points, colour in zip(trajectories.swapaxes(0, 1), colours, strict=True):
        ax.plot(*points.T, ".", color=colour)
    return ax


def gradient_norms(layer: keras.Layer, gradients: Sequence[Any], ax: Axes | None = None) -> Axes:
    """Draws how much of a gradient arrives at each timestep.

    ```
    ||dL / dW_t||    for each kind of weight W
    ```

    The gradient of a bias equals the gradient at the pre-activation, summed over the batch: it shows whether
    the gradient vanishes or explodes on its way back through time.

    Args:
        layer: A built untied layer.
        gradients: Gradients with respect to `layer.trainable_variables`, in their order.
        ax: A `matplotlib.axes.Axes` to draw into. Default: new ones, in a new pyplot figure.

    Returns:
        The `matplotlib.axes.Axes` with one line for each kind of weight, on a logarithmic scale.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or the gradients are not as many
            as its variables, or of other shapes; if `ax` is no single axes.

    Example:

    ```python
    import numpy as np
    import tensorflow as tf
    from untied_rnn import UntiedSimpleRNN, plot

    layer = UntiedSimpleRNN(50)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.random.random((32, 28, 28))) ** 2)
    ax = plot.gradient_norms(layer, tape.gradient(loss, layer.trainable_variables))
    ```
    """
    layer = _untied(layer)
    arrays = [ops.convert_to_numpy(gradient) for gradient in gradients]
    expected = [tuple(variable.shape) for variable in layer.trainable_variables]
    if [array.shape for array in arrays] != expected:
        raise ValueError(
            f"Expected a gradient for each of `layer.trainable_variables`, of shapes {expected}. "
            f"Received: shapes {[array.shape for array in arrays]}"
        )
    stacks = {id(stack.variables[0]): stack for stack in layer.timestep_weights.stacks}
    ax = _labelled(ax, "norm of the gradient")
    for variable, array in zip(layer.trainable_variables, arrays, strict=True):
        stack = stacks[id(variable)]
        norms = np.full(stack.sets.count, np.nan)  # frozen ones have no gradient
        norms[stack.trained_sets] = _norms(array)
        ax.plot(norms[stack.sets.index(_timesteps(layer))], ".-", label=variable.name)
    ax.set_yscale("log")
    ax.legend()
    return ax


# What layers are made of, as NumPy arrays whose first axis is the timesteps.


def _untied(layer: keras.Layer) -> UntiedLayer:
    """The layer, which must be an untied and a built one."""
    if not isinstance(layer, UntiedLayer):
        raise TypeError(f"Expected an untied layer. Received: {layer!r}")
    layer.check_built()
    return layer


def _along_time(layer: keras.Layer) -> dict[str, np.ndarray]:
    layer = _untied(layer)
    weights = layer.timestep_weights.along_time(_timesteps(layer))
    return {name: stack.astype("float64") for name, stack in weights.items()}


def _timesteps(layer: UntiedLayer) -> np.ndarray:
    return np.arange(layer.timesteps or layer.timestep_weights.cycle)


def _states(layer: RecurrentLayer, sequences: Any) -> np.ndarray:
    """The state after each timestep, from a layer like this one that returns them."""
    layer.check_built()
    without_outputs = {"output_units": None} if hasattr(layer, "output_units") else {}
    returning = like(layer, type(layer), return_sequences=True, return_state=False, **without_outputs)
    # By position, for the layers within a copy of a cell may have names with other numbers. Output matrices,
    # which come last, are left out.
    stacks = (one.timestep_weights.stacks for one in (returning, layer))
    for stack, other in zip(*stacks, strict=False):
        stack.assign(other.array())
    return ops.convert_to_numpy(returning(sequences)).astype("float64")


def _norms(stack: np.ndarray) -> np.ndarray:
    return np.linalg.norm(stack.reshape(len(stack), -1), axis=1)


# Drawing.


def _labelled(ax: Axes | None, ylabel: str, xlabel: str = "timestep") -> Axes:
    """The given axes, or new ones: called after all other checks, so that an error leaves no figure."""
    if ax is None:
        _, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
    elif not isinstance(ax, Axes):
        raise TypeError(f"Expected `ax` to be one matplotlib Axes, or None. Received: {ax!r}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return ax


def _colours(ax: Axes, label: str, count: int) -> np.ndarray:
    """So many colours in a row, with a bar that tells what they stand for."""
    scale = ScalarMappable(Normalize(0, max(count - 1, 1)), "viridis")
    ax.figure.colorbar(scale, ax=ax, label=label)
    return scale.to_rgba(np.arange(count))
