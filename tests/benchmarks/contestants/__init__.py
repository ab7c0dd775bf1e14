"""One module per library. `contestants(problem)` names what it enters, with its kind and how to make it.

The kinds are `ours`, `untied`, `tied` and `floor`. A contestant has

- `forward()`, `gradients()` and `step()`, which return when the result is there,
- `results()`: what `problems.reference` returns, after one `step()`, and
- where it enters `gpu.py`, too: `tied`, and `current_weights()` as `problems.WEIGHTS` has them.

`gpu_contestants(problem)` has stage (of `gpu.STAGES`) and mode (of `gpu_measurements.CALLS`) in place of the
kind, and `description()` tells on what the library runs.
"""
