"""An LSTM with separate weights for every timestep, as users of each library write it.

One file for each library, `docs/libraries.md` shows them all. Their `build(timesteps, inputs, units)` returns

- in JAX, parameters and a function `(parameters, x)`; `key` draws the parameters,
- elsewhere, a model that is called with `x`.

`x` is `(batch, timesteps, inputs)`; the result is the last state `h`, `(batch, units)`.
"""
