"""Pictures of how weights, states and gradients change along time (matplotlib, the extra `examples`).

Each function draws a layer into a new figure and returns it: `figure.savefig(path)` writes it, and a notebook
shows it. Timesteps that share weights show the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from untied_rnn._layers.layer import UntiedLayer
from untied_rnn._layers.recurrent import RecurrentLayer
from untied_rnn._weights.moves import like

try:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        '`untied_rnn.plot` needs matplotlib. Install it with: pip install "untied-rnn[examples]"'
    ) from error


def weight_norms(layer: UntiedLayer) -> Figure:
    """Draws the size of each timestep's weights.

    ```
    ||W_t||    for each kind of weight W (Frobenius norm)
    ```

    Args:
        layer: A built untied layer.

    Returns:
        A `matplotlib.figure.Figure` with one line for each kind of weight.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built.

    Example:

    ```python
    from untied_rnn import UntiedSimpleRNN, plot

    layer = UntiedSimpleRNN(50)
    layer.build((None, 28, 28))
    figure = plot.weight_norms(layer)
    ```
    """
    figure, axes = _axes("norm of the weights")
    for name, stack in _along_time(layer).items():
        axes.plot(_norms(stack), ".-", label=name)
    axes.legend()
    return figure


def singular_values(layer: UntiedLayer, weight: str = "recurrent_kernel") -> Figure:
    """Draws the singular values of one kind of weight: how much each timestep stretches, and shrinks.

    ```
    s_1(W_t) >= s_2(W_t) >= ...
    ```

    For a recurrent matrix, values above one make states and gradients grow, those below let them fade.

    Args:
        layer: A built untied layer.
        weight: Name of a matrix of it, such as `"kernel"`.

    Returns:
        A `matplotlib.figure.Figure` with one line for the largest values of the timesteps, one for the
        second largest, and so on.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or has no matrix of that name.
    """
    weights = _along_time(layer)
    matrices = [name for name, stack in weights.items() if stack.ndim == 3]
    if weight not in matrices:
        raise ValueError(f"Expected `weight` to be one of {matrices}. Received: weight={weight!r}")
    values = np.linalg.svd(weights[weight], compute_uv=False)
    figure, axes = _axes(f"singular values of {weight}")
    colours = _colours(figure, axes, "rank, from the largest", values.shape[1])
    for line, colour in zip(values.T, colours, strict=True):
        axes.plot(line, color=colour, linewidth=1)
    return figure


def neighbour_distances(layer: UntiedLayer) -> Figure:
    """Draws how far the weights of neighbouring timesteps are apart.

    ```
    ||W_t - W_{t-1}|| / sqrt(||W_t||^2 / 2 + ||W_{t-1}||^2 / 2)
    ```

    0 for equal weights, as in a tied layer; about sqrt(2) for independent weights, as after a random
    initialization.

    Args:
        layer: A built untied layer.

    Returns:
        A `matplotlib.figure.Figure` with one line for each kind of weight, from timestep 1.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or has one timestep only.
    """
    weights = _along_time(layer)
    if len(next(iter(weights.values()))) < 2:
        raise ValueError("Expected a layer with two timesteps or more. Received: weights for one")
    figure, axes = _axes("distance from the timestep before")
    for name, stack in weights.items():
        squares, distance = _norms(stack) ** 2, _norms(np.diff(stack, axis=0))
        size = np.sqrt((squares[1:] + squares[:-1]) / 2)
        # Weights that are zero at both timesteps, such as new biases, are equal.
        relative = np.divide(distance, size, out=np.zeros_like(distance), where=size > 0)
        axes.plot(np.arange(1, len(stack)), relative, ".-", label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def state_trajectories(layer: RecurrentLayer, sequences: Any) -> Figure:
    """Draws each sequence's hidden-state trajectory in its first two principal components.

    ```
    p_t = (h_t - mean) P    with P the first two principal components of all h_t
    ```

    Args:
        layer: A built recurrent layer. Of an `UntiedRNN` the outputs of its cell are drawn, of an
            `UntiedLSTM` its hidden states. A stateful one starts from its states, which stay as they are.
        sequences: `(batch, timesteps, input_dim)`, a few of them.

    Returns:
        A `matplotlib.figure.Figure` with a line for each sequence, whose points are coloured by timestep.

    Raises:
        TypeError, ValueError: If `layer` is no recurrent untied layer, or not built, or its states have
            one component only.
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"Expected an untied recurrent layer. Received: {layer!r}")
    states = _states(layer, sequences)
    if states.shape[-1] < 2:
        raise ValueError(f"Expected states of two components or more. Received: shape {states.shape}")
    centred = states - states.mean(axis=(0, 1))
    _, _, components = np.linalg.svd(centred.reshape(-1, states.shape[-1]), full_matrices=False)
    trajectories = centred @ components[:2].T
    figure, axes = _axes("second principal component", "first principal component")
    for trajectory in trajectories:
        axes.plot(*trajectory.T, color="0.8", linewidth=1, zorder=0)
    colours = _colours(figure, axes, "timestep", states.shape[1])
    for points, colour in zip(trajectories.swapaxes(0, 1), colours, strict=True):
        axes.plot(*points.T, ".", color=colour)
    return figure


def gradient_norms(layer: UntiedLayer, gradients: Sequence[Any]) -> Figure:
    """Draws how much of a gradient arrives at each timestep.

    ```
    ||dL / dW_t||    for each kind of weight W
    ```

    The gradient of a bias equals the gradient at the pre-activation, summed over the batch: it shows whether
    the gradient vanishes or explodes on its way back through time.

    Args:
        layer: A built untied layer.
        gradients: Gradients with respect to `layer.trainable_variables`, in their order.

    Returns:
        A `matplotlib.figure.Figure` with one line for each kind of weight, on a logarithmic scale.

    Raises:
        TypeError, ValueError: If `layer` is no untied layer, or not built, or the gradients are not as many
            as its variables, or of other shapes.

    Example:

    ```python
    import numpy as np
    import tensorflow as tf
    from untied_rnn import UntiedSimpleRNN, plot

    layer = UntiedSimpleRNN(50)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(np.random.random((32, 28, 28))) ** 2)
    figure = plot.gradient_norms(layer, tape.gradient(loss, layer.trainable_variables))
    ```
    """
    _check(layer)
    arrays = [ops.convert_to_numpy(gradient) for gradient in gradients]
    expected = [tuple(variable.shape) for variable in layer.trainable_variables]
    if [array.shape for array in arrays] != expected:
        raise ValueError(
            f"Expected a gradient for each of `layer.trainable_variables`, of shapes {expected}. "
            f"Received: shapes {[array.shape for array in arrays]}"
        )
    stacks = {id(stack.variables[0]): stack for stack in layer.stacks}
    figure, axes = _axes("norm of the gradient")
    for variable, array in zip(layer.trainable_variables, arrays, strict=True):
        stack = stacks[id(variable)]
        norms = np.full(stack.sharing.sets, np.nan)  # frozen ones have no gradient
        norms[stack.trained_sets] = _norms(array)
        axes.plot(norms[layer.set_of(_timesteps(layer))], ".-", label=variable.name)
    axes.set_yscale("log")
    axes.legend()
    return figure


# What layers are made of, as NumPy arrays whose first axis is the timesteps.


def _along_time(layer: UntiedLayer) -> dict[str, np.ndarray]:
    _check(layer)
    weights = layer.stacks.along_time(_timesteps(layer))
    return {name: stack.astype("float64") for name, stack in weights.items()}


def _timesteps(layer: UntiedLayer) -> np.ndarray:
    return np.arange(layer.timesteps or layer.sharing.sets)  # one period, where there is no end


def _check(layer: UntiedLayer) -> None:
    if not isinstance(layer, UntiedLayer):
        raise TypeError(f"Expected an untied layer. Received: {layer!r}")
    layer.check_built()


def _states(layer: RecurrentLayer, sequences: Any) -> np.ndarray:
    """The state after each timestep, from a layer like this one that returns them."""
    _check(layer)
    without_outputs = {name: None for name in ("output_units",) if hasattr(layer, name)}
    returning = like(layer, type(layer), return_sequences=True, return_state=False, **without_outputs)
    # By position, for the layers within a copy of a cell may have names with other numbers. Output matrices,
    # which come last, are left out.
    for stack, other in zip(returning.stacks, layer.stacks, strict=False):
        stack.assign(other.array())
    return ops.convert_to_numpy(returning(sequences)).astype("float64")


def _norms(stack: np.ndarray) -> np.ndarray:
    return np.linalg.norm(stack.reshape(len(stack), -1), axis=1)


# Drawing.


def _axes(ylabel: str, xlabel: str = "timestep") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes


def _colours(figure: Figure, axes: Axes, label: str, count: int) -> np.ndarray:
    """So many colours in a row, with a bar that tells what they stand for."""
    scale = ScalarMappable(Normalize(0, max(count - 1, 1)), "viridis")
    figure.colorbar(scale, ax=axes, label=label)
    return scale.to_rgba(np.arange(count))
