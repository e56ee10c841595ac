"""Trains a detector: state, optimiser, sharding, training step, checkpoints, and the loop over all steps."""
