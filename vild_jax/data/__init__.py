"""Reads data sets and makes batches of them: sources, transforms, regions. NumPy alone, no JAX."""
