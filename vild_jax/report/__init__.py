"""Writes pages and charts for people, without JAX."""
