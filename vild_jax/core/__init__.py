"""Holds the method as pure functions on arrays, with jax.numpy alone."""
