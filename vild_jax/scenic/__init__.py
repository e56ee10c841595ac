"""Trains with google-research/scenic: its config, and model, data and trainer as a Scenic project."""
