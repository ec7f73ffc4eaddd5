"""Proofs and timings of the GPU kernels."""
