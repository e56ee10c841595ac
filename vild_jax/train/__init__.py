"""State, optimiser, sharding, the step, checkpoints, the loop."""
