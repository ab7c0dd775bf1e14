"""Weights: which set a timestep uses; stacks of sets; how one is drawn, penalised and stored; moves."""
