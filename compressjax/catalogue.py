"""The 61 systems this library is to hold: what each is, where it lives, and whether it is there yet.

Plain data without imports of the library, so that tables and the command line can list it at no cost. What was
measured is not written here: it is read from the committed results when a table is made.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "quantization": "weights as few-bit codes",
        "factorization": "weights as products of small factors",
        "sparsity": "weights left out",
        "kvcache": "smaller attention caches",
        "allocation": "which method, how many bits, where",
        "training": "compression while training or tuning",
        "distributed": "fewer bytes between workers",
        "codecs": "images, sound and features as bitstreams",
        "entropy": "models that drive an entropy coder",
        "media": "what to do with media once it was compressed",
        "retrieval": "compressed indexes",
        "science": "compressed representations in the sciences",
        "evaluation": "what compression costs, beyond perplexity",
        "models": "networks that are compressed by construction",
    }
)
"""Families in reading order; each is a folder of the package."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One system.

    Attributes:
      slug: short name, also that of its claim script.
      name: as its authors call it.
      about: what it does, in one line.
      paper: arXiv identifier.
      family: key of :data:`FAMILIES`.
      verb: how a user calls it: a public verb, "transform" for optax transforms and training leaves, "evaluate" for
        benchmarks, "apply" for models and whole pipelines.
      state: "done" once code, tests and claim are there.
      config: "module:name" of its config, None while planned.
      test, claim: paths in the repository, None while planned.
      figure: name of the claim row that tables show for it.
    """

    slug: str
    name: str
    about: str
    paper: str
    family: str
    verb: str
    state: Literal["done", "planned"] = "planned"
    config: str | None = None
    test: str | None = None
    claim: str | None = None
    figure: str | None = None

    @property
    def url(self) -> str:
        """Address of the paper's abstract."""
        return f"https://arxiv.org/abs/{self.paper}"


def _planned(slug: str, name: str, about: str, paper: str, family: str, verb: str) -> Method:
    return Method(slug=slug, name=name, about=about, paper=paper, family=family, verb=verb)


METHODS: tuple[Method, ...] = (
    Method(
        slug="gptq",
        name="GPTQ",
        about="Second-order one-shot weight quantisation (OPTQ), with the modern extensions",
        paper="2210.17323",
        family="quantization",
        verb="quantize",
        state="done",
        config="compressjax.quantization:GPTQ",
        test="tests/quantization/test_gptq.py",
        claim="benchmarks/claims/gptq.py",
        figure="3 bits, group 64: perplexity gap",
    ),
    _planned(
        "spqr",
        "SpQR",
        "Tiny groups with quantised statistics, sensitive weights kept apart",
        "2306.03078",
        "quantization",
        "quantize",
    ),
    _planned(
        "squeezellm",
        "SqueezeLLM",
        "Sensitivity-weighted non-uniform levels, dense and sparse parts",
        "2306.07629",
        "quantization",
        "quantize",
    ),
    _planned(
        "decoupleq",
        "decoupleQ",
        "2-bit uniform quantisation by alternating integer and floating parts",
        "2404.12759",
        "quantization",
        "quantize",
    ),
    _planned(
        "nupes",
        "NUPES",
        "Non-uniform quantisation by power exponents, learned over the whole code space",
        "2308.05600",
        "quantization",
        "quantize",
    ),
    _planned(
        "comet",
        "COMET",
        "4-bit weights, mixed 4- and 8-bit activations and a 4-bit cache for serving",
        "2410.12168",
        "quantization",
        "quantize",
    ),
    _planned(
        "lr2vq",
        "LR²VQ",
        "Vector quantisation of low-rank representations of weights",
        "2211.11397",
        "quantization",
        "quantize",
    ),
    _planned(
        "pv-tuning",
        "PV-Tuning",
        "Tuning of codes and codebooks at 1 to 2 bits per weight",
        "2405.14852",
        "quantization",
        "quantize",
    ),
    _planned(
        "lord",
        "LoRD",
        "One-shot low-rank decomposition of linears from output features",
        "2309.14021",
        "factorization",
        "lowrank",
    ),
    _planned(
        "eora",
        "EoRA",
        "Training-free low-rank compensation in the input eigenspace",
        "2410.21271",
        "factorization",
        "lowrank",
    ),
    _planned(
        "bitstack",
        "BitStack",
        "Stack of sign and low-rank residual blocks, loaded to any size",
        "2410.23918",
        "factorization",
        "lowrank",
    ),
    _planned(
        "compactifai",
        "CompactifAI",
        "Weights as matrix product operators, with layer profiling and healing",
        "2401.14109",
        "factorization",
        "lowrank",
    ),
    _planned(
        "apriori-conv",
        "A-priori compressed convolutions",
        "Convolutions trained from scratch in tensor formats, for wave simulators",
        "2304.04964",
        "factorization",
        "lowrank",
    ),
    _planned(
        "afm-ctr",
        "AFM-CTR",
        "Low-rank click-through-rate models by atomic feature mimicking",
        "2405.18146",
        "factorization",
        "lowrank",
    ),
    _planned(
        "gqsa",
        "GQSA",
        "Group sparsity with group quantisation and two-stage recovery",
        "2412.17560",
        "sparsity",
        "sparsify",
    ),
    _planned(
        "class-dependent",
        "Class-dependent pruning",
        "Iterative pruning with losses that mind false negatives",
        "1909.10364",
        "sparsity",
        "sparsify",
    ),
    _planned(
        "gear",
        "GEAR",
        "Quantised cache with per-head low-rank error and sparse outliers",
        "2403.05527",
        "kvcache",
        "kv_compress",
    ),
    _planned(
        "minicache", "MiniCache", "Merging of caches across adjacent layers", "2405.14366", "kvcache", "kv_compress"
    ),
    _planned(
        "ems", "EMS", "Head-wise eviction then merging by a global-local score", "2412.08521", "kvcache", "kv_compress"
    ),
    _planned(
        "matryoshka-kv",
        "MatryoshkaKV",
        "Trainable orthogonal projections of cache features, nested ranks",
        "2410.14731",
        "kvcache",
        "kv_compress",
    ),
    _planned(
        "transmla",
        "TransMLA",
        "Grouped-query attention turned into multi-head latent attention",
        "2502.07864",
        "kvcache",
        "kv_compress",
    ),
    _planned(
        "evopress",
        "EvoPress",
        "Evolutionary choice of a compression level per layer",
        "2410.14649",
        "allocation",
        "allocate",
    ),
    _planned(
        "quantnas",
        "QuantNAS",
        "Differentiable search of quantisation-friendly super-resolution networks",
        "2208.14839",
        "allocation",
        "allocate",
    ),
    _planned(
        "compressor-3mb",
        "Compressor",
        "Genetic search for a size target, then distillation",
        "2208.07120",
        "allocation",
        "allocate",
    ),
    _planned(
        "eight-bit-optimizers",
        "8-bit optimizers",
        "Optimiser states in 8 bits by block-wise dynamic quantisation",
        "2110.02861",
        "training",
        "transform",
    ),
    _planned(
        "quest",
        "QuEST",
        "Quantisation-aware training with 1- to 4-bit weights and activations",
        "2502.05003",
        "training",
        "transform",
    ),
    _planned(
        "edkm",
        "eDKM",
        "Memory-efficient differentiable k-means clustering of weights in training",
        "2309.00964",
        "training",
        "transform",
    ),
    _planned("bivit", "BiViT", "Binary vision transformers", "2211.07091", "training", "transform"),
    _planned(
        "peqa", "PEQA", "Adaptation that tunes the quantisation scales alone", "2305.14152", "training", "transform"
    ),
    _planned(
        "compress-then-prompt",
        "Compress, then prompt",
        "Soft prompts that recover compressed language models",
        "2305.11186",
        "training",
        "transform",
    ),
    _planned(
        "distill-quant",
        "Quantized distillation",
        "Quantised distillation and differentiable quantisation points",
        "1802.05668",
        "training",
        "transform",
    ),
    _planned(
        "codebook-features",
        "Codebook features",
        "Sparse discrete hidden states by vector quantisation in every layer",
        "2310.17230",
        "training",
        "transform",
    ),
    _planned(
        "l-greco", "L-GreCo", "Layer-wise adaptive gradient compression", "2210.17357", "distributed", "transform"
    ),
    _planned(
        "masha",
        "MASHA",
        "Compressed communication for variational inequalities and saddle points",
        "2110.03313",
        "distributed",
        "transform",
    ),
    _planned(
        "vqgan-extreme",
        "VQGAN at extreme rates",
        "Images as index maps of fine-tuned VQGANs",
        "2307.08265",
        "codecs",
        "encode",
    ),
    _planned(
        "walloc", "WaLLoC", "Wavelet packets around a shallow asymmetric autoencoder", "2412.09405", "codecs", "encode"
    ),
    _planned(
        "mcquic",
        "McQuic",
        "Multi-codebook probabilistic vector quantisation of images",
        "2203.10897",
        "codecs",
        "encode",
    ),
    _planned(
        "rdeic", "RDEIC", "Relay residual diffusion for extreme image compression", "2410.02640", "codecs", "encode"
    ),
    _planned(
        "entropic-student",
        "Entropic Student",
        "Supervised compression with a learned prior and a teacher",
        "2108.11898",
        "codecs",
        "encode",
    ),
    _planned(
        "bottlefit",
        "BottleFit",
        "Bottlenecks and multi-stage training for split computing",
        "2201.02693",
        "codecs",
        "encode",
    ),
    _planned(
        "jpeg-lm", "JPEG-LM", "Language model over the bytes of canonical codecs", "2408.08459", "codecs", "encode"
    ),
    _planned(
        "zipgan", "ZipGAN", "Super-resolution GAN for turbulence, against wavelets", "2412.14150", "codecs", "encode"
    ),
    _planned(
        "probabilistic-circuits",
        "Probabilistic circuits",
        "Lossless compression with exact conditionals of hidden Chow-Liu trees",
        "2111.11632",
        "entropy",
        "encode",
    ),
    _planned(
        "neurally-compressed-text",
        "Equal-Info Windows",
        "Language models over arithmetic-coded text",
        "2404.03626",
        "entropy",
        "encode",
    ),
    _planned("mec-b", "MEC-B", "Minimum entropy coupling with a bottleneck", "2410.21666", "entropy", "encode"),
    _planned("mfqe", "MFQE 2.0", "Multi-frame quality enhancement of compressed video", "1902.09707", "media", "apply"),
    _planned("rbqe", "RBQE", "Blind quality enhancement with early exits", "2006.16581", "media", "apply"),
    _planned("idm", "IDM", "Invertible diffusion models for compressed sensing", "2403.17006", "media", "apply"),
    _planned(
        "ar-seg", "AR-Seg", "Segmentation of compressed video at altering resolutions", "2303.07224", "media", "apply"
    ),
    _planned(
        "jpq",
        "JPQ",
        "Query encoder and product quantisation trained together for retrieval",
        "2108.00644",
        "retrieval",
        "encode",
    ),
    _planned(
        "quantum-transfer",
        "Quantum transfer learning",
        "Autoencoder, five-qubit circuit and dense classifier",
        "2408.03351",
        "science",
        "apply",
    ),
    _planned(
        "open-quantum",
        "POVM transformer",
        "Autoregressive transformer for open quantum systems",
        "2009.05580",
        "science",
        "apply",
    ),
    _planned(
        "for-loop-tumor",
        "A for-loop is all you need",
        "Personal tumour growth by database query instead of sampling",
        "2205.04550",
        "science",
        "apply",
    ),
    _planned(
        "llm-kick",
        "LLM-KICK",
        "Knowledge-intensive benchmark of compressed language models",
        "2310.01382",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "compressed-trust",
        "Decoding Compressed Trust",
        "Trustworthiness of compressed language models",
        "2403.15447",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "machine-perceptual-quality",
        "MPQ",
        "What severe lossy compression changes for machine perception",
        "2401.07957",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "matrix-nuclear-norm",
        "Matrix Nuclear-Norm",
        "Hidden-state norms as a compression metric of language models",
        "2410.10672",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "intelligence-linearly",
        "Compression represents intelligence linearly",
        "Bits per character as a predictor of benchmark scores",
        "2404.09937",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "arnold",
        "ARNOLD",
        "Language-grounded manipulation with continuous goals, under compression",
        "2304.04321",
        "evaluation",
        "evaluate",
    ),
    _planned(
        "vision-mamba",
        "Vision Mamba",
        "Bidirectional selective state-space vision backbone",
        "2401.09417",
        "models",
        "apply",
    ),
    _planned("crate", "CRATE", "White-box transformers from sparse rate reduction", "2306.01129", "models", "apply"),
)
"""All systems, by family."""


def method(slug: str) -> Method:
    """The system of that name.

    Raises:
      KeyError: no such system.
    """
    for entry in METHODS:
        if entry.slug == slug:
            return entry
    raise KeyError(f"no method {slug!r}; known: {', '.join(entry.slug for entry in METHODS)}")


def measured(entry: Method, results: Path) -> dict[str, Any] | None:
    """The claim row that speaks for a method.

    Args:
      entry: the method.
      results: folder of committed results.

    Returns:
      The row, or None when the method names no figure or its claim has not been run.

    Raises:
      ValueError: the result lacks the row that the catalogue names, so one of the two is out of date.
    """
    path = results / f"claims_{entry.slug}.json"
    if entry.figure is None or not path.is_file():
        return None
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["name"] == entry.figure:
            return row
    raise ValueError(f"{path.name} has no row {entry.figure!r}, which the catalogue names for {entry.slug}")
