"""The original that a compressed model is compared with."""

from pathlib import Path

from compressjax.checkpoint import LoadedModel, ModelSource, load_params, open_model
from compressjax.checkpoint.native_folder import MANIFEST
from compressjax.cli.screen import Screen
from compressjax.streaming import CompressionSummary, read_summary


def summary_of(model: str | Path) -> CompressionSummary | None:
    """The summary of a folder that ``compress`` wrote; None for any other model."""
    return read_summary(Path(model)) if (Path(model) / MANIFEST).is_file() else None


def original_of(summary: CompressionSummary | None, against: str | None, screen: Screen) -> ModelSource | None:
    """The model named by ``--against``, else the one the folder was made from if it is still there.

    Raises:
      FileNotFoundError, ValueError: the named one cannot be opened.
    """
    if against == "none":
        return None
    if against is not None:
        return open_model(against)
    recorded = None if summary is None else summary.note.get("source")
    if recorded is None:
        return None
    try:
        return open_model(recorded)
    except FileNotFoundError as error:
        screen.notice(f"not compared with the original, {error}")
        return None


def load_source(source: ModelSource) -> LoadedModel:
    """A model in memory from its opened source."""
    return LoadedModel(
        config=source.config,
        params=load_params(source),
        tokenizer=source.tokenizer,
        chat_template=source.chat_template,
        name=source.name,
        eos_ids=source.eos_ids,
        bos_id=source.bos_id,
    )
