"""TFDS dataset builders: the form in which prepared data lie on disk."""
