"""Processes, progress bars and files: what every room above may use."""
