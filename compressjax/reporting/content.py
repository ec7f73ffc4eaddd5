"""Everything the HTML page shows, as plain data."""

import dataclasses
import re

from compressjax.reporting.components import Component
from compressjax.reporting.quality import Quality
from compressjax.streaming import CompressionSummary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What a model wrote."""

    name: str
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportContent:
    """One compressed model, and what it is compared with.

    Attributes:
      summary: of the compression.
      components: sizes by part.
      qualities: of the models on the evaluation text; the compressed model last, its original first if there is one.
      bits: true bits per weight of compressed matrices by model name, as far as they have some.
      evaluation: on what text, in words; None without qualities.
      prompt: what the models were asked.
      samples: their answers, in the order of ``qualities``.
    """

    summary: CompressionSummary
    components: tuple[Component, ...]
    qualities: tuple[Quality, ...] = ()
    bits: tuple[tuple[str, float], ...] = ()
    evaluation: str | None = None
    prompt: str | None = None
    samples: tuple[Sample, ...] = ()


def method_name(method: str) -> str:
    """The config's name out of its text, or "several methods" for rules.

    Example:
      >>> method_name("GPTQ(bits=3)"), method_name("blocks/attn/* = RTN(bits=4); ** = GPTQ(bits=3)")
      ('GPTQ', 'several methods')
    """
    found = re.fullmatch(r"(\w+)\(.*\)", method)
    return found.group(1) if found and ";" not in method else "several methods"
