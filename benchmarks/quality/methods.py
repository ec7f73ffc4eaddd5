"""Methods at 4, 3, 2 and 1 bit, each set so that its true size stays under the limit of its column."""

from typing import Any, NamedTuple

from compressjax.factorization import SVD, BitStack, EoRA
from compressjax.quantization import COMET, GPTQ, NUPES, RTN, DecoupleQ, SpQR, SqueezeLLM
from compressjax.sparsity import GQSA, NM, SparseGPT
from compressjax.training import BlockTuning

LIMITS = {4: 4.33, 3: 3.35, 2: 2.35, 1: 1.6}
"""Most true bits per weight of a column; scales, zeros, tables, indices and padding are counted."""


NUPES_STEPS = 60
"""Of 300 by default: its gradient steps would take over thirty times as long as GPTQ does for the whole model."""


class Method(NamedTuple):
    """One row.

    Attributes:
      name: unique, also its name on the command line.
      family: the curve it belongs to.
      column: 4, 3, 2 or 1, a key of LIMITS; 32 for the original.
      cfg: config, or None for the original.
      tuning: training of every block's floats after its weights, or None.
      fisher: whether it needs gradients of the loss instead of inputs.
      inputs: whether it changes what its weights read, so that the leaves must run as they are.
      levels: bits of GPTQ among which dynamic programming chooses for every matrix, at the size of ``cfg`` everywhere.
    """

    name: str
    family: str
    column: int
    cfg: Any
    tuning: Any = None
    fisher: bool = False
    inputs: bool = False
    levels: tuple[int, ...] = ()


# Towards the original network's outputs, four passes over the calibration text.
_TUNING = BlockTuning(epochs=4, target="original")


def aimed(bits: int, **options: Any) -> GPTQ:
    """GPTQ with its best options, aimed at the original network's outputs."""
    return GPTQ(bits=bits, grid="hessian", asymmetric="target", alpha=0.5, **{"group": 64, **options})


def _decoupled(bits: int, group: int) -> DecoupleQ:
    return DecoupleQ(bits=bits, group=group, polish=4, alpha=0.5, tuning=None)


def methods() -> tuple[Method, ...]:
    """All rows in order."""
    found = [Method("float32", "float32", 32, None)]
    for bits in (4, 3, 2):
        tables = SqueezeLLM(bits=bits, outlier_share=0.0, sensitive_share=0.0)
        found += [
            Method(f"RTN, {bits} bits", "RTN", bits, RTN(bits=bits, group=64, grid="mse")),
            Method(f"NUPES, {bits} bits", "NUPES", bits, NUPES(bits=bits, group=64, steps=NUPES_STEPS)),
            Method(f"SqueezeLLM, {bits} bits", "SqueezeLLM", bits, tables, fisher=True),
            Method(f"SpQR, {bits} bits", "SpQR", bits, SpQR(bits=bits, group=64, outlier_share=0.003)),
            Method(f"decoupleQ, {bits} bits", "decoupleQ", bits, _decoupled(bits, 192 if bits == 4 else 96)),
            Method(f"GPTQ, {bits} bits", "GPTQ", bits, aimed(bits)),
        ]
        if bits < 4:
            levels = GPTQ(bits=bits, group=-1, levels="kmeans", asymmetric="target", alpha=0.5)
            found += [
                Method(f"GPTQ k-means, {bits} bits", "GPTQ k-means", bits, levels),
                Method(f"GPTQ tuned, {bits} bits", "GPTQ tuned", bits, aimed(bits), _TUNING),
            ]
    found += [
        Method("COMET W4A8, 4 bits", "COMET W4A8", 4, COMET(block=64, max_hi_fraction=1.0, lo_bits=8), inputs=True),
        Method("COMET W4A4, 4 bits", "COMET W4A4", 4, COMET(block=64, rule="error"), inputs=True),
        Method("GQSA, 3 bits", "GQSA", 3, GQSA(sparsity=0.43)),
        Method("GQSA, 2 bits", "GQSA", 2, GQSA(sparsity=0.605)),
        Method("BitStack, 2 bits", "BitStack", 2, BitStack(levels=2, rank=3)),
        Method("decoupleQ tuned, 2 bits", "decoupleQ tuned", 2, _decoupled(2, 96), _TUNING),
        Method("decoupleQ tuned, 1 bit", "decoupleQ tuned", 1, _decoupled(1, 64), _TUNING),
        Method("decoupleQ, 1 bit", "decoupleQ", 1, _decoupled(1, 64)),
        Method("BitStack, 1 bit", "BitStack", 1, BitStack(levels=1, rank=8)),
    ]
    return (*found, *_compositions())


def _compositions() -> list[Method]:
    """Methods on top of each other, and bits shared out between matrices.

    A path of rank r costs .046 r bits per weight in 16 bits on average, and a bit more than a quarter of it where its
    factors are rounded to 4 bits; at rank 64 it fits under the limit of the next wider code.
    """
    four = RTN(bits=4, group=64, grid="mse")
    thin = SVD(reduction=0.5, scale="whiten", factors=GPTQ(bits=4, group=64, grid="hessian"))
    found = []
    for bits in (4, 3, 2):
        base = aimed(bits - 1) if bits > 2 else _decoupled(1, 64)
        repaired = EoRA(base=base, rank=64, factors=four)
        name = "GPTQ + EoRA" if bits > 2 else "decoupleQ + EoRA"
        found.append(Method(f"{name}, {bits} bits", name, bits, repaired))
    found += [
        Method("GPTQ allocated, 3 bits", "GPTQ allocated", 3, aimed(3), levels=(2, 3, 4)),
        Method("SVD + GPTQ, 3 bits", "SVD + GPTQ", 3, thin),
        Method("SparseGPT, 4 bits", "SparseGPT", 4, SparseGPT(sparsity=0.8)),
        Method("2:4 + 4 bits, 3 bits", "2:4", 3, NM(n=2, m=4, bits=4, group=128, grid="hessian")),
    ]
    return found
