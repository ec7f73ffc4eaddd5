"""Evaluation: perplexity, divergence from the original, zero-shot questions."""
