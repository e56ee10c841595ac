"""Compiles a training for devices that are not there, and reports what it would take."""
