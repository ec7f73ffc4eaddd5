"""Quantised checkpoints that other libraries read and write: GPTQ and compressed-tensors, out and in."""
