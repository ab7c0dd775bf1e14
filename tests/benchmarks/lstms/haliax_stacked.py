"""haliax: `Stacked` has a cell for each timestep, which `fold` runs in turn; the cell is written by hand."""

import equinox as eqx
import haliax as hax
import haliax.nn as hnn
import jax


class LSTMCell(eqx.Module):
    from_input: hnn.Linear
    from_state: hnn.Linear

    @staticmethod
    def init(inputs, units, *, key):
        key_input, key_state = jax.random.split(key)
        gates = (hax.Axis("gate", 4), units)
        return LSTMCell(
            hnn.Linear.init(inputs, gates, key=key_input),
            hnn.Linear.init(units.alias("state"), gates, key=key_state, use_bias=False),
        )

    def __call__(self, states, x):
        h, c = states
        i, f, g, o = (self.from_input(x) + self.from_state(h.rename({"units": "state"}))).unbind("gate")
        c = hnn.sigmoid(f) * c + hnn.sigmoid(i) * hax.tanh(g)
        return hnn.sigmoid(o) * hax.tanh(c), c


def build(timesteps: int, inputs: int, units: int, key: jax.Array):
    time, features, hidden = hax.make_axes(time=timesteps, features=inputs, units=units)
    keys = jax.random.split(key, timesteps)
    cells = hnn.Stacked.init(time, LSTMCell)(features, hidden, key=keys)

    def run(cells, x):
        x = hax.named(x, ("batch", "time", "features"))
        zeros = hax.zeros((x.resolve_axis("batch"), hidden))
        h, _ = cells.fold((zeros, zeros), x)
        return h.array

    return cells, run
