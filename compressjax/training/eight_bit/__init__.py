"""Optimizer states in 8 bits (Dettmers et al., 2022)."""

from compressjax.training.eight_bit.blockwise import BlockQ, dequantize_blockwise, quantize_blockwise
from compressjax.training.eight_bit.code_maps import code_map, create_dynamic_map, create_linear_map
from compressjax.training.eight_bit.optimizers import (
    adagrad_8bit,
    adam_8bit,
    adamw_8bit,
    lamb_8bit,
    lars_8bit,
    lion_8bit,
    rmsprop_8bit,
    scale_by_adam_8bit,
    sgd_8bit,
)
from compressjax.training.eight_bit.percentile_clipping import percentile_clipping
from compressjax.training.eight_bit.quantized_state import (
    QuantizedState,
    decoded_state,
    quantized_state,
    state_nbytes,
    state_shardings,
)
from compressjax.training.eight_bit.stable_embedding import StableEmbedding, stable_embedding_label_fn
from compressjax.training.eight_bit.state_policy import StatePolicy

__all__ = [
    "BlockQ",
    "QuantizedState",
    "StableEmbedding",
    "StatePolicy",
    "adagrad_8bit",
    "adam_8bit",
    "adamw_8bit",
    "code_map",
    "create_dynamic_map",
    "create_linear_map",
    "decoded_state",
    "dequantize_blockwise",
    "lamb_8bit",
    "lars_8bit",
    "lion_8bit",
    "percentile_clipping",
    "quantize_blockwise",
    "quantized_state",
    "rmsprop_8bit",
    "scale_by_adam_8bit",
    "sgd_8bit",
    "stable_embedding_label_fn",
    "state_nbytes",
    "state_shardings",
]
