"""Holds thin Linen modules: parameters and nothing else."""
