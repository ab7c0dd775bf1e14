"""`x_t W_t + b_t` for all timesteps: one batched product, however the timesteps share their weights."""

from keras import ops

from untied_rnn._types import Tensor
from untied_rnn._weights.sharing import Sharing


def affine(inputs: Tensor, kernel: Tensor, bias: Tensor | None, sharing: Sharing) -> Tensor:
    """`x_t W_s + b_s`, `s` being the weight set of timestep `t`.

    Args:
        inputs: `x`, `(timesteps, batch, input_dim)`.
        kernel: `W`, `(sets, input_dim, units)`, of any floating dtype.
        bias: `b`, `(sets, units)` or `None`.
        sharing: Which set a timestep uses.

    Returns:
        A tensor of shape `(timesteps, batch, units)`.
    """
    if sharing.separate:
        return _batched(inputs, kernel, bias)
    # Timesteps of one set become rows of one matrix: (sets, most * batch, input_dim), zeros where a set
    # serves less than the most. So it is the inputs that are copied, and never a weight.
    length, batch, input_dim = ops.shape(inputs)
    t, most = ops.arange(length), sharing.most(length)
    places = sharing.index(t) * most + sharing.rank(t)
    groups = ops.scatter(ops.expand_dims(places, 1), inputs, (sharing.sets * most, batch, input_dim))
    groups = ops.reshape(groups, (sharing.sets, most * batch, input_dim))
    outputs = _batched(groups, kernel, bias)
    outputs = ops.reshape(outputs, (sharing.sets * most, batch, kernel.shape[-1]))
    return ops.take(outputs, places, axis=0)


def _batched(inputs: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    outputs = ops.matmul(inputs, ops.cast(kernel, inputs.dtype))
    return outputs if bias is None else outputs + ops.cast(ops.expand_dims(bias, -2), inputs.dtype)
