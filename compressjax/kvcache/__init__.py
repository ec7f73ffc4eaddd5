"""Keys and values of past tokens in fewer bytes: one protocol, and the codecs that follow it."""

from compressjax.kvcache.cache import Bytes, KVCache, Layout, append_token, cache_bytes, flush, materialize, view_of
from compressjax.kvcache.compress import kv_compress
from compressjax.kvcache.decoding import Form, LlamaForm, continuation, decode_step, plain_prompt, prefill
from compressjax.kvcache.dense import DenseKV
from compressjax.kvcache.ems import EMS
from compressjax.kvcache.eviction import H2O, SnapKV, StreamingLLM
from compressjax.kvcache.gear import GEAR
from compressjax.kvcache.generator import Generator, Stream, compress_ring
from compressjax.kvcache.kv4 import KV4
from compressjax.kvcache.latent import LatentForm, latent_logits
from compressjax.kvcache.matryoshka import MatryoshkaKV, MKVParams, Projections, pack_projections
from compressjax.kvcache.minicache import MiniCache, layer_similarity, plan_pairs
from compressjax.kvcache.partial import Partial, combine, combine_mesh
from compressjax.kvcache.protocol import Codec, KVSpec, Segment, State, View
from compressjax.kvcache.rounded import KIVI, RoundKV
from compressjax.kvcache.transmla import TransMLA, collect_kv_stats, gqa_to_mla

__all__ = [
    "EMS",
    "GEAR",
    "H2O",
    "KIVI",
    "KV4",
    "Bytes",
    "Codec",
    "DenseKV",
    "Form",
    "Generator",
    "KVCache",
    "KVSpec",
    "Layout",
    "LlamaForm",
    "LatentForm",
    "MKVParams",
    "MatryoshkaKV",
    "MiniCache",
    "Partial",
    "Projections",
    "RoundKV",
    "Segment",
    "State",
    "SnapKV",
    "Stream",
    "StreamingLLM",
    "TransMLA",
    "View",
    "append_token",
    "cache_bytes",
    "collect_kv_stats",
    "combine",
    "combine_mesh",
    "compress_ring",
    "continuation",
    "decode_step",
    "flush",
    "gqa_to_mla",
    "kv_compress",
    "latent_logits",
    "pack_projections",
    "layer_similarity",
    "materialize",
    "plan_pairs",
    "plain_prompt",
    "prefill",
    "view_of",
]
