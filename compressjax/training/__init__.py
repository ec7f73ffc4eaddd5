"""Compression while training or tuning."""

from compressjax.training.block_tuning import BlockTuning, tune_block
from compressjax.training.healing import Healed, heal, is_tensor_train, trained_part
from compressjax.training.reconstruction import Reconstructed, reconstruct
from compressjax.training.trainable import Trainable, trainable_form, unpacked_form

__all__ = [
    "BlockTuning",
    "Healed",
    "Reconstructed",
    "Trainable",
    "heal",
    "is_tensor_train",
    "reconstruct",
    "trainable_form",
    "trained_part",
    "tune_block",
    "unpacked_form",
]
