"""The same question to several models, for the report."""

from collections.abc import Sequence

import jax.numpy as jnp

from compressjax.checkpoint import LoadedModel
from compressjax.cli.prompts import pieces, prompt_ids
from compressjax.cli.screen import Screen
from compressjax.models import generate
from compressjax.reporting.content import Sample


def draw_samples(
    models: Sequence[tuple[str, LoadedModel]], prompt: str, max_new_tokens: int, screen: Screen
) -> tuple[Sample, ...]:
    """Greedy answers of every model, in its chat template if it has one."""
    samples = []
    for name, model in models:
        with screen.waiting(f"{name} writes"):
            ids = prompt_ids(model, prompt, chat=model.chat_template is not None)
            out = generate(
                model.config,
                model.params,
                jnp.asarray(ids)[None],
                max_new_tokens=max_new_tokens,
                eos_id=model.eos_ids or None,
            )
            drawn = [int(token) for token in out[0, len(ids) :]]
            kept = drawn[: next((i for i, token in enumerate(drawn) if token in model.eos_ids), len(drawn))]
            samples.append(Sample(name=name, text="".join(pieces(model, kept)).strip()))
    return tuple(samples)
