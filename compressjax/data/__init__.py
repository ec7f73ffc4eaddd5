"""Text for calibration and evaluation, and how it is cut into windows of tokens."""
