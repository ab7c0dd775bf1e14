"""One module per library. `contestants(problem)` names what it enters, with its kind and how to make it.

The kinds are `ours`, `untied`, `tied` and `floor`. A contestant has

- `forward()`, `gradients()` and `step()`, which return when the result is there, and
- `results()`: what `problems.reference` returns, after one `step()`.
"""
