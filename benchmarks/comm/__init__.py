"""Bytes between workers, and what they buy."""
