"""What one can do with folders and files, as Python functions."""
