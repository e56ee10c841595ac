"""Compiles a training for devices that are not present, and reports the memory and the operations it would need."""
