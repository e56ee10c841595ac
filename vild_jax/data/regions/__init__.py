"""Region stores: the regions of every picture of a data set, on disk."""
