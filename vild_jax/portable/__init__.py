"""Writes a detector as a program that runs without this package: StableHLO, ONNX or a SavedModel."""
