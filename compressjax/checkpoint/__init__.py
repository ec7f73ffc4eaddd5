"""Weights in and out: Hugging Face folders, GGUF files, packaged models."""

from compressjax.checkpoint.bert_package import LoadedEncoder as LoadedEncoder
from compressjax.checkpoint.bert_package import load_minilm as load_minilm
from compressjax.checkpoint.efficientnet_package import load_efficientnet_lite as load_efficientnet_lite
from compressjax.checkpoint.loading import LoadedModel as LoadedModel
from compressjax.checkpoint.loading import load_model as load_model
from compressjax.checkpoint.loading import load_params as load_params
from compressjax.checkpoint.loading import open_model as open_model
from compressjax.checkpoint.saving import is_checkpoint as is_checkpoint
from compressjax.checkpoint.saving import load as load
from compressjax.checkpoint.saving import load_files as load_files
from compressjax.checkpoint.saving import load_metadata as load_metadata
from compressjax.checkpoint.saving import save as save
from compressjax.checkpoint.source import ModelSource as ModelSource
