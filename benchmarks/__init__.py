"""Measurements behind every figure of the documentation; results are committed under ``results/``."""
