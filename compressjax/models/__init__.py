"""The networks that come with the library: decoders, BERT / MiniLM encoders, EfficientNet-Lite and DeepFM."""

from compressjax.dispatch import verb
from compressjax.models.blockwise import Blockwise, Stage
from compressjax.models.chat import render_chat
from compressjax.models.config import LlamaConfig, RopeScaling
from compressjax.models.deepfm import DeepFM, DeepFMConfig
from compressjax.models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig
from compressjax.models.generate import decode_step, generate, prefill, stream
from compressjax.models.llama import Llama, LlamaBlocks
from compressjax.models.minilm import Bert, BertBlocks, BertConfig, mean_pool
from compressjax.models.sampling import Sampling, sample


@verb(on="cfg")
def blockwise(cfg) -> Blockwise:
    """The block-by-block view of the model that a config describes.

    Args:
      cfg: `LlamaConfig`, `BertConfig`, or a type that registered a rule. A second argument, ``dtype``, is that of
        activations.

    Returns:
      A hashable `Blockwise` whose stages are equal for equal configs, so functions jitted on them are compiled once.
    """
    raise NotImplementedError


blockwise.register(LlamaConfig)(LlamaBlocks)
blockwise.register(BertConfig)(BertBlocks)

__all__ = [
    "Bert",
    "BertBlocks",
    "BertConfig",
    "Blockwise",
    "DeepFM",
    "DeepFMConfig",
    "EfficientNetLite",
    "EfficientNetLiteConfig",
    "Llama",
    "LlamaBlocks",
    "LlamaConfig",
    "RopeScaling",
    "Sampling",
    "Stage",
    "blockwise",
    "decode_step",
    "generate",
    "mean_pool",
    "prefill",
    "render_chat",
    "sample",
    "stream",
]
