"""The version, in the one place that packaging, the command line and saved files read it from."""

__version__ = "0.1.0"
