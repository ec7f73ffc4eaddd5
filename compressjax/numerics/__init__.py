"""Shared mathematics, one topic per file."""
