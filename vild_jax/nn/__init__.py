"""Thin Linen modules: parameters and nothing else."""
