"""Pages and charts for people; no jax."""
