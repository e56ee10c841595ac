"""Uses a trained detector: loads it, detects, evaluates, draws, and writes bundles."""
