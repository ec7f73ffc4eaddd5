"""``compressjax fit``: a model that fits into so many megabytes, and into others after it."""

import math
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.filesize import decimal
from rich.table import Table

from compressjax.calibration import Fisher, Stats, calibrate
from compressjax.calibration.joint import HessianAndMoments
from compressjax.checkpoint import LoadedModel, ModelSource, load_params, open_model
from compressjax.cli.arguments import Fit
from compressjax.cli.prompts import pieces, prompt_ids
from compressjax.cli.screen import Screen
from compressjax.cli.sizes import bytes_of
from compressjax.cli.text import token_windows
from compressjax.evaluation.logits import LinenLogits
from compressjax.evaluation.perplexity import perplexity, token_nll
from compressjax.factorization import (
    BitStack,
    BitStackStore,
    LoadedStack,
    block_bytes_of,
    curvature_gains,
    levels_for_budget,
    levelwise_order,
    load_stack,
    lowrank,
    open_store,
    order_from_gains,
    resize_stack,
    stacks_of,
    thin_rank,
    write_store,
)
from compressjax.factorization.bitstack_store import MANIFEST
from compressjax.leaf.sign_lowrank import with_loaded
from compressjax.models import Llama, stream
from compressjax.ops import dense
from compressjax.quantization.outside_blocks import check_embedding_bits, round_outside
from compressjax.select import is_matrix, replace, weights


def run(args: Fit, screen: Screen) -> None:
    """Loads ``args.model`` at each of the sizes in turn, after decomposing and storing it where that is still to do."""
    sizes = [bytes_of(text) for text in args.memory]
    if not sizes:
        raise ValueError("--memory needs at least one size")
    source = open_model(args.model)
    store = _store_for(args, source, screen)
    for size in sizes:  # before the first is loaded
        levels_for_budget(store.table, size)
    tokens = None
    if args.text is not None:
        tokens = token_windows(source, args.text, args.eval_windows, args.length, "start")
    model, rows = None, []
    for size in sizes:
        if model is None:
            model = load_stack(store, size)
            moved = {"read": int(model.levels.sum()), "dropped": 0}
            moved["bytes_read"] = int((model.levels * store.block_bytes).sum())
        else:
            resized = resize_stack(store, model, size)
            model = resized.model
            moved = {"read": resized.read, "dropped": resized.dropped, "bytes_read": resized.bytes_read}
        row = _row(store, model, size) | moved
        if tokens is not None:
            with screen.waiting(f"Perplexity at {decimal(model.nbytes)}"):
                logits = LinenLogits(Llama(source.config))
                row["perplexity"] = perplexity(logits, model.params, tokens).perplexity
        _show(row, screen)
        if args.prompt is not None:
            row["answer"] = _answer(source, model, args.prompt, args.max_new_tokens, screen)
        rows.append(row)
    screen.finish(
        {
            "command": "fit",
            "store": str(store.folder),
            "smallest_bytes": int(store.table.bytes[0]),
            "largest_bytes": int(store.table.bytes[-1]),
            "settings": dict(store.about["settings"]),
            "sizes": rows,
        }
    )


def _row(store: BitStackStore, model: LoadedStack, size: int) -> dict[str, Any]:
    blocks = int((model.levels.astype(np.int64) * store.block_bytes).sum())
    parameters = sum(weight.layers * math.prod(weight.shape) for weight in store.weights)
    held = Counter(model.levels.tolist())
    return {
        "budget_bytes": size,
        "bytes": model.nbytes,
        "block_bytes": blocks,
        "other_bytes": model.nbytes - blocks,
        "block_bits_per_weight": 8 * blocks / parameters,
        "matrices_by_blocks": {str(count): held[count] for count in sorted(held)},
    }


def _show(row: dict[str, Any], screen: Screen) -> None:
    table = Table(show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("Budget", decimal(row["budget_bytes"]))
    table.add_row(
        "In memory",
        f"{decimal(row['bytes'])}: blocks {decimal(row['block_bytes'])}, the rest {decimal(row['other_bytes'])}",
    )
    table.add_row("Bits per weight", f"{row['block_bits_per_weight']:.3f} over the weights in blocks")
    table.add_row("Blocks: matrices", ", ".join(f"{k}: {n}" for k, n in row["matrices_by_blocks"].items()))
    table.add_row("Moved", f"{row['read']} blocks read ({decimal(row['bytes_read'])}), {row['dropped']} dropped")
    if "perplexity" in row:
        table.add_row("Perplexity", f"{row['perplexity']:.2f}")
    screen.show(table)


def _answer(source: ModelSource, stack: LoadedStack, prompt: str, length: int, screen: Screen) -> str:
    model = LoadedModel(
        config=source.config,
        params=stack.params,
        tokenizer=source.tokenizer,
        chat_template=source.chat_template,
        name=source.name,
        eos_ids=source.eos_ids,
        bos_id=source.bos_id,
    )
    ids = np.asarray(prompt_ids(model, prompt, chat=model.chat_template is not None), np.int32)
    text = ""
    drawn = stream(model.config, model.params, ids, max_new_tokens=length, eos_id=model.eos_ids or None)
    for piece in pieces(model, drawn):
        text += piece
        screen.write(piece)
    screen.write("\n")
    return text


def _store_for(args: Fit, source: ModelSource, screen: Screen) -> BitStackStore:
    wanted = _settings(args)
    if not (args.store / MANIFEST).is_file():
        _make_store(args, source, wanted, screen)
        return open_store(args.store)
    store = open_store(args.store)
    if store.about.get("fingerprint") != source.fingerprint():
        raise ValueError(f"{args.store} holds another model than {args.model}; name another --store")
    if store.about["settings"] != wanted:
        screen.notice(f"{args.store} was made with {store.about['settings']}; flags that say otherwise are not used")
    return store


def _settings(args: Fit) -> dict[str, Any]:
    return {
        "levels": args.levels,
        "rank": args.rank,
        "embedding_bits": args.embedding_bits,
        "calibration": args.calibration,
        "windows": args.windows,
        "length": args.length,
        "sort": args.sort,
        "sort_windows": args.sort_windows,
        "sort_length": args.sort_length,
    }


def _make_store(args: Fit, source: ModelSource, settings: dict[str, Any], screen: Screen) -> None:
    """Decomposes every kernel of the blocks, sorts the residual blocks and writes them."""
    if args.store.exists() and (not args.store.is_dir() or any(args.store.iterdir())):
        raise FileExistsError(f"{args.store} exists and is no store; name another --store")
    check_embedding_bits(args.embedding_bits)
    params = load_params(source)
    with screen.waiting(f"Reading {args.calibration}"):
        tokens = token_windows(source, args.calibration, args.windows, args.length, "even")
        few = token_windows(source, args.calibration, args.sort_windows, args.sort_length, "start")
    model = Llama(source.config)

    def hidden(params, ids):
        return model.apply({"params": params}, ids, method="hidden")[0]

    batches = [jnp.asarray(row[None]) for row in tokens]
    with screen.bar("Calibrating", "window") as progress:
        stats = calibrate(
            hidden,
            params,
            batches,
            HessianAndMoments(skip_first=False),
            paths="blocks/**",
            progress=lambda done: progress(done, len(batches)),
        )
    with screen.waiting("Decomposing"):
        small = jax.block_until_ready(lowrank(params, _rules(params, args), stats=stats))
    stacks = stacks_of(small)
    order = _sorted(args, model, params, stacks, stats, jnp.asarray(few), screen)
    with screen.waiting(f"Writing {args.store}"):
        write_store(
            args.store,
            round_outside(small, args.embedding_bits),
            order,
            about={"model": source.name, "fingerprint": source.fingerprint(), "settings": settings},
        )


def _rules(params: dict, args: Fit) -> dict[str, BitStack]:
    kernels = {p: w for p, w in weights(params).items() if p.startswith("blocks/") and is_matrix(p, w)}
    ranks = {path: args.rank or thin_rank(w.shape) for path, w in kernels.items()}
    return {path: BitStack(levels=args.levels, rank=rank, scale="mean_abs") for path, rank in ranks.items()}


def _nats(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Mean nats of the next token, one number per window."""
    return jnp.mean(token_nll(logits, tokens), axis=-1)


def _sorted(
    args: Fit, model: Llama, params: dict, stacks: dict, stats: Stats, tokens: jax.Array, screen: Screen
) -> np.ndarray:
    size, logits = block_bytes_of(stacks), LinenLogits(model)
    if args.sort == "curvature":
        with screen.bar("Gradients", "window") as progress:
            fisher = calibrate(
                logits,
                params,
                list(tokens[:, None]),
                Fisher(loss=_nats),
                paths="blocks/**",
                progress=lambda done: progress(done, len(tokens)),
            )
        with screen.bar("Sorting blocks", "weight") as progress:
            return order_from_gains(curvature_gains(params, stacks, stats, fisher, progress=progress), size)

    @jax.jit
    def loss_at(levels, tree, stacks):
        first, kernels = 0, {}
        for path, stack in stacks.items():
            kernels[path] = dense(with_loaded(stack, levels[first : first + stack.loaded.size]))
            first += stack.loaded.size
        return jnp.mean(token_nll(logits(replace(tree, kernels), tokens), tokens))

    with screen.bar("Sorting blocks", "evaluation") as progress:
        return levelwise_order(
            lambda levels: loss_at(jnp.asarray(levels), params, stacks),
            args.levels,
            len(size),
            block_bytes=size,
            progress=progress,
        )
