"""Sources, transforms and batches; numpy only."""
