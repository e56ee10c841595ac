"""vild_jax: train and run open-vocabulary object detectors in JAX."""
