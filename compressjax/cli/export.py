"""``compressjax export``: a compressed folder for transformers, vLLM and llama.cpp."""

import jax
import jax.numpy as jnp
from rich.filesize import decimal

from compressjax.checkpoint import open_model
from compressjax.cli.arguments import Export
from compressjax.cli.evaluate import stored_bytes
from compressjax.cli.screen import Screen
from compressjax.exchange.export import FolderExtras, export_folder
from compressjax.exchange.export_gguf import export_gguf_file
from compressjax.exchange.formats import CompressedTensorsFormat, GPTQFormat
from compressjax.leaf import Affine, is_leaf

FORMATS = ("gptq", "compressed-tensors", "gguf")


def run(args: Export, screen: Screen) -> None:
    """Writes ``args.model`` as ``args.format`` into ``args.out``, one block in memory at a time."""
    if args.format not in FORMATS:
        raise ValueError(f"--format must be one of {', '.join(FORMATS)}, got {args.format!r}")
    source = open_model(args.model)
    extras = FolderExtras(
        tokenizer=source.tokenizer,
        chat_template=source.chat_template,
        eos_ids=source.eos_ids,
        bos_id=source.bos_id,
    )
    shared = {"extras": extras, "overwrite": args.overwrite}
    if args.format == "gguf":
        target = export_gguf_file(args.out, source.config, name=source.name, **shared)
    else:
        layout = CompressedTensorsFormat() if args.format == "compressed-tensors" else _gptq_layout(source.block(0))
        target = export_folder(args.out, source.config, layout, **shared)
    with screen.bar(f"Exporting {source.name}", "block") as progress, target as export:
        export.add_rest(jax.tree.map(jnp.asarray, source.rest()))
        for index in range(source.num_blocks):
            export.add_block(index, jax.tree.map(jnp.asarray, source.block(index)))
            progress(index + 1, source.num_blocks)
    disk = stored_bytes(open_model(args.out))
    screen.show(f"Written to {args.out}: {args.format}, {decimal(disk)}")
    screen.finish({"command": "export", "out": str(args.out), "format": args.format, "disk_bytes": disk})


def _gptq_layout(block: dict) -> GPTQFormat:
    """ "gptq" is what every reader knows; zeros, which it would store less one, need "gptq_v2"."""
    leaves = jax.tree.leaves(block, is_leaf=is_leaf)
    symmetric = all(leaf.zero_kind == "none" for leaf in leaves if isinstance(leaf, Affine))
    return GPTQFormat(checkpoint_format="gptq" if symmetric else "gptq_v2")
