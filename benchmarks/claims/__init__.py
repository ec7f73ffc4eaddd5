"""One script per method: what its paper claims, at a size that runs here, with the baseline beside it."""
