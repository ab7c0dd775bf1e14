"""What each sharing means, in NumPy: the weights of all timesteps, and the gradients of its parameters."""

import dataclasses

import keras
import numpy as np

from untied_rnn.sharing import Basis, Blocks, Listed, LowRank, Parameter, Periodic, Sharing, Tied, Untied


@keras.saving.register_keras_serializable(package="tests")
@dataclasses.dataclass(frozen=True)
class Scaled(Sharing):
    """A user's own: `W_t = a_t W`."""

    def parameters(self, shape, timesteps, initializer):
        scale = Parameter((), Untied(), keras.initializers.Ones())
        return {"": Parameter(shape, Tied(), initializer), "scale": scale}

    def weight(self, weight, scale):
        return scale * weight


def set_numbers(sharing, timesteps):
    """The set that each timestep uses."""
    t = np.arange(timesteps)
    if isinstance(sharing, Listed):
        return np.array(sharing.index)[:timesteps]
    by_class = {
        Untied: lambda: t,
        Tied: lambda: 0 * t,
        Blocks: lambda: t // sharing.size,
        Periodic: lambda: t % sharing.period,
    }
    return by_class[type(sharing)]()


def functions(basis, length, timesteps):
    """`phi`, `(length, size)`."""
    if basis.kind == "spline":
        knots = np.linspace(0, timesteps - 1, basis.size)
        return np.stack([np.interp(np.arange(length), knots, one) for one in np.eye(basis.size)], axis=1)
    found = [np.ones(length)]
    for k in range(1, basis.size):
        wave = np.sin if k % 2 == 0 else np.cos
        found.append(wave(2 * np.pi * ((k + 1) // 2) * np.arange(length) / timesteps))
    return np.stack(found, axis=1)


def along_time(sharing, parameters, length, timesteps):
    """The weight of each timestep.

    Args:
        sharing: The sharing.
        parameters: Arrays by name, the first one by `""`.
        length: The number of timesteps of a sequence.
        timesteps: The number of timesteps of the layer.
    """
    if isinstance(sharing, LowRank):
        s = set_numbers(sharing.sharing, length)
        mean = np.repeat(parameters[""], length, axis=0)
        if "b" in parameters:
            products = np.einsum("tir,tro->tio", parameters["a"][s], parameters["b"][s])
            return mean + products.reshape(mean.shape)
        return mean + (parameters["deviation"][s] if "deviation" in parameters else 0)
    if isinstance(sharing, Basis):
        return np.tensordot(functions(sharing, length, timesteps), parameters[""][0], 1)
    if isinstance(sharing, Scaled):
        scale = parameters["scale"][:length]
        return scale.reshape(-1, *[1] * (parameters[""].ndim - 1)) * parameters[""]
    return parameters[""][set_numbers(sharing, length)]


def gradients(sharing, parameters, slopes, timesteps):
    """The gradients of the parameters, from `slopes`, the gradients of each timestep's weight."""
    length = len(slopes)

    def added(terms, index, like):
        total = np.zeros(like.shape)
        np.add.at(total, index, terms)
        return total

    everything = slopes.sum(axis=0, keepdims=True)
    if isinstance(sharing, LowRank):
        s, found = set_numbers(sharing.sharing, length), {"": everything}
        if "deviation" in parameters:
            found["deviation"] = added(slopes, s, parameters["deviation"])
        if "b" in parameters:
            a, b = parameters["a"], parameters["b"]
            flat = slopes.reshape(length, a.shape[1], b.shape[2])
            found["a"] = added(flat @ np.swapaxes(b[s], 1, 2), s, a)
            found["b"] = added(np.swapaxes(a[s], 1, 2) @ flat, s, b)
        return found
    if isinstance(sharing, Basis):
        return {"": np.tensordot(functions(sharing, length, timesteps).T, slopes, 1)[None]}
    if isinstance(sharing, Scaled):
        products = (slopes * parameters[""]).reshape(length, -1).sum(axis=1)
        scale = np.zeros(parameters["scale"].shape)
        scale[:length] = products
        factors = parameters["scale"][:length].reshape(-1, *[1] * (slopes.ndim - 1))
        return {"": (factors * slopes).sum(axis=0, keepdims=True), "scale": scale}
    return {"": added(slopes, set_numbers(sharing, length), parameters[""])}
