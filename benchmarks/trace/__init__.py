"""Trace and compile time by width and depth."""
