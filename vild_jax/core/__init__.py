"""The method as pure functions on arrays: jax.numpy only."""
