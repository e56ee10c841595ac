"""Defines, as TFDS dataset builders, how prepared data are stored on disk."""
