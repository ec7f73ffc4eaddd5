"""Quantised checkpoints that other programs read and write: GPTQ and compressed-tensors, out and in; GGUF, out."""
