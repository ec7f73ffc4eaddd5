"""Seconds, memory and perplexity of compressing a real language model, by method and bits."""
