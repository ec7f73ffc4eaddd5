"""Compression while training or tuning."""

from compressjax.training.block_tuning import BlockTuning, tune_block
from compressjax.training.reconstruction import Reconstructed, reconstruct
from compressjax.training.trainable import Trainable, trainable_form, unpacked_form

__all__ = ["BlockTuning", "Reconstructed", "Trainable", "reconstruct", "trainable_form", "tune_block", "unpacked_form"]
