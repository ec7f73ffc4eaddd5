"""Summaries made up for the report."""

import dataclasses
from collections.abc import Callable

import pytest

from compressjax.reporting.components import Component
from compressjax.reporting.content import ReportContent, Sample
from compressjax.reporting.quality import Quality
from compressjax.streaming import CompressionSummary, MatrixRow


def row(path: str, error: float, rounding_error: float = 0.04, fallback: bool = False, bits: float = 3.25) -> MatrixRow:
    """One matrix of 100 weights."""
    return MatrixRow(
        path=path,
        bits=bits,
        parameters=100,
        error=error,
        rounding_error=rounding_error,
        damp=0.01,
        dead=0,
        fallback=fallback,
    )


@pytest.fixture
def make_row() -> Callable[..., MatrixRow]:
    """Makes one matrix."""
    return row


@pytest.fixture
def rows() -> tuple[MatrixRow, ...]:
    """Three blocks of two matrices; one is worse than rounding, one fell back."""
    kinds = ("attn/q", "mlp/up")
    made = [row(f"blocks/{b}/{kind}/kernel", 0.01 + 0.001 * b) for b in range(3) for kind in kinds]
    made[2] = dataclasses.replace(made[2], error=0.05)
    made[5] = dataclasses.replace(made[5], error=0.04, fallback=True)
    return tuple(made)


@pytest.fixture
def summary(rows) -> CompressionSummary:
    """A model of 1000 weights, 600 of them compressed."""
    return CompressionSummary(
        model="model <1>",
        method="GPTQ(bits=3, group=64)",
        bits_per_weight=3.25,
        parameters=1000,
        compressed_parameters=600,
        bytes=1044,
        dense_bytes_16bit=2000,
        matrices=rows,
        seconds=12.3,
        note={"calibration": "text & more", "windows": 32},
    )


@pytest.fixture
def content(summary) -> ReportContent:
    """Everything a report can show."""

    def quality(name, perplexity, **other):
        return Quality(
            name=name, perplexity=perplexity, nll=1.0, standard_error=None, tokens=10, bits_per_byte=1.234, **other
        )

    return ReportContent(
        summary=summary,
        components=(
            Component(name="Embedding", parameters=400, bits=6400),
            Component(name="MLP", parameters=600, bits=1950),
        ),
        qualities=(
            quality("model, original", 26.89),
            quality("Rounded to nearest, 3 bits", 79.38, kl=1.2, agreement=0.5),
            quality("GPTQ, 3 bits", 34.21, kl=0.271, agreement=0.743),
        ),
        bits=(("GPTQ, 3 bits", 3.25),),
        evaluation="some text, 3 windows of 32 tokens",
        prompt="Why <b>?",
        samples=(Sample(name="GPTQ, 3 bits", text="Because <script>alert(1)</script>\n& so on."),),
    )
