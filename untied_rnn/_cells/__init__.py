"""Cells of Keras and of users: as pure functions, and what their weights are drawn from."""
