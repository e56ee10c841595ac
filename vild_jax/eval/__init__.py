"""Turns results files into metrics, with NumPy alone and without an accelerator."""
