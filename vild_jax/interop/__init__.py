"""Converts weights of other code bases into ours."""
