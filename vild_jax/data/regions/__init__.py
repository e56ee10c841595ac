"""Keeps region stores: the regions of every picture of a data set, on disk.

records    what a store holds (`Job`, `Regions`) and its format
store      `RegionStore`, which reads a store
writer     `StoreWriter`, which writes one
locks      which processes are writing a store
imported   `ImportedRegions`: regions that others computed, from .npz files
targets    regions as training uses them: moved with their picture
"""
