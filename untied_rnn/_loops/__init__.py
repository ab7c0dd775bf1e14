"""The mathematics as pure functions, the loop over time on every backend, and what compiles them."""
