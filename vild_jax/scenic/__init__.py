"""The front door for google-research/scenic."""
