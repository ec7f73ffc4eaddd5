"""Block by block: every block is calibrated on what the already compressed blocks before it put out.

One pass per block suffices. The block stops at each distinct input, the weights that read it are compressed, and the
block goes on with what they became (``models.blockwise``). Only one block's weights and the hidden states of the
calibration tokens are held, so blocks may come from disk and go back to disk.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from compressjax.calibration.records import Record, merge
from compressjax.calibration.statistics import measure
from compressjax.driver import (
    BlockInputs,
    MatrixInfo,
    all_rules,
    block_rule,
    check_input,
    compress_group_jit,
    statistic_for,
    wants_original,
)
from compressjax.freed_memory import compile_then_run, return_freed_memory
from compressjax.models.blockwise import Blockwise
from compressjax.models.stack import stack_blocks
from compressjax.numerics.linalg import gram
from compressjax.select import replace, resolve, weights


class BlockResult(NamedTuple):
    """One compressed block.

    Attributes:
      index: its number.
      params: its tree, unstacked.
      infos: what the methods report, by path inside the block.
    """

    index: int
    params: Any
    infos: dict[str, MatrixInfo]


class Calibration(NamedTuple):
    """Tokens to calibrate on, in chunks that run at once.

    Attributes:
      tokens: int ``[chunks, B, T]``.
      mask: bool ``[chunks, B, T]`` of the tokens that count, or None.
    """

    tokens: jax.Array
    mask: jax.Array | None


def in_chunks(tokens: ArrayLike, mask: ArrayLike | None = None, batch: int = 2) -> Calibration:
    """Cuts calibration tokens ``[N, T]`` into chunks of ``batch`` rows; a last, short chunk is filled up and masked.

    Raises:
      ValueError: for an empty set, or a mask of another shape.
    """
    tokens = jnp.asarray(tokens)
    mask = None if mask is None else jnp.asarray(mask, bool)
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError(f"calibration tokens must be [windows >= 1, length >= 1], got {tokens.shape}")
    if mask is not None and mask.shape != tokens.shape:
        raise ValueError(f"mask must have the shape of tokens {tokens.shape}, got {mask.shape}")
    batch = min(batch, tokens.shape[0])
    fill = -tokens.shape[0] % batch
    if fill:
        mask = jnp.ones(tokens.shape, bool) if mask is None else mask
        mask = jnp.pad(mask, ((0, fill), (0, 0)))
        tokens = jnp.pad(tokens, ((0, fill), (0, 0)), mode="edge")
    shape = (-1, batch, tokens.shape[1])
    return Calibration(tokens.reshape(shape), None if mask is None else mask.reshape(shape))


@functools.partial(jax.jit, static_argnums=(0,))
def _embed(model, rest, tokens):
    return jax.lax.map(lambda t: model.embed(rest, t), tokens)


@functools.partial(jax.jit, static_argnums=(0,))
def _finish(model, block, carry):
    return jax.lax.map(lambda c: model.finish(block, c), carry)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A whole block as one function of its params and carry."""

    model: Blockwise

    def __call__(self, block: Any, carry: dict) -> jax.Array:
        for stage in self.model.stages:
            _, carry = stage.advance(block, carry)
        return self.model.finish(block, carry)


@functools.partial(jax.jit, static_argnums=(0,))
def _run_chunks(run, block, carry):
    return jax.lax.map(lambda c: run(block, c), carry)


class _Stream(NamedTuple):
    """A block's weights and the state of all chunks inside it, as one network (compressed or original) sees them."""

    block: Any
    carry: dict


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(advance, statistics, block, carry, original_block, original_carry, mask):
    """Runs one stage over all chunks, for one or both networks, and measures its input on the way."""

    def chunk(c, c_original, m):
        inputs, c = advance(block, c)
        records = [measure(s, inputs, m) for s in statistics]
        if original_block is not None:
            target, c_original = advance(original_block, c_original)
            drift = (target - inputs).astype(jnp.float32)
            if m is not None:
                drift = jnp.where(m[..., None], drift, 0)
            x = inputs.astype(jnp.float32).reshape(-1, inputs.shape[-1])
            records.append(Record(dxxt=gram(drift.reshape(x.shape), x)))
        return _joined(records), c, c_original

    def step(total, args):
        record, c, c_original = chunk(*args)
        samples = record.samples
        record = dataclasses.replace(record, samples=None)
        changed = _changed(c, args[0]), _changed(c_original, args[1])
        return merge(total, record), (*changed, samples)

    chunks = (carry, original_carry, mask)
    shapes = jax.eval_shape(lambda a: chunk(*a)[0], jax.tree.map(lambda a: a[0], chunks))
    blank = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), dataclasses.replace(shapes, samples=None))
    total, (changed, original_changed, samples) = jax.lax.scan(step, blank, chunks)
    if samples is not None:
        total = dataclasses.replace(total, samples=samples.reshape(-1, samples.shape[-1]))
    return total, changed, original_changed


def _changed(new, old):
    """The entries that a stage wrote; copying the others through the loop would cost more than some stages do."""
    return None if new is None else {name: value for name, value in new.items() if value is not old.get(name)}


def _joined(records):
    """One record with the fields of several that were taken from the same tokens."""
    out = Record()
    for record in records:
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(Record)}
        out = dataclasses.replace(out, **{k: v for k, v in fields.items() if v is not None})
    return out


def compress_blocks(
    model: Blockwise,
    rest: Any,
    block: Callable[[int], Any],
    calibration: Calibration,
    cfg: Any,
    *,
    rules: Mapping[str, Any] | None = None,
    tuning: Any = None,
    finished: Callable[[int], Any] | None = None,
    choices: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
) -> Iterator[BlockResult]:
    """Compresses a model's blocks in order, each on the output of the compressed ones before it.

    Args:
      model: how to embed and to walk a block.
      rest: the parameters outside the blocks, as the embedding needs them.
      block: ``number -> params`` of one block, unstacked; called once per block, in order.
      calibration: tokens in chunks, from :func:`in_chunks`.
      cfg: a method, or rules by path; paths are those of the whole tree ("blocks/attn/q/kernel").
      rules: rules that take precedence over ``cfg``.
      tuning: a config with a ``block_rule``, run on every block once its weights are compressed, after the
        ``block_rule`` of the methods themselves; None for none.
      finished: ``number -> params or None``: blocks that an earlier run has compressed. They are run, not compressed,
        and nothing is yielded for them.
      choices: configs of single weights of single blocks by their full path ("blocks/3/attn/q/kernel"), None to leave
        one alone; they take precedence over the rules.
      key: randomness for methods that use it.

    Yields:
      :class:`BlockResult` per block, as soon as it is done.

    Raises:
      ValueError: for a rule that matches nothing, NaN in weights or statistics; the message names block and path.
    """
    picked = _by_block(choices or {}, model.num_blocks)
    hidden = _embed(model, rest, calibration.tokens)
    del rest  # an embedding is larger than a block, and a caller that streams has no more use for it
    original_hidden = None
    for index in range(model.num_blocks):
        # Once a block: it costs page faults, and without it a long run keeps some 200 MB that it does not use.
        return_freed_memory()
        old = None if finished is None else finished(index)
        dense_block = block(index)
        chosen = _methods(dense_block, cfg, rules, index, picked.get(index, {}))
        if original_hidden is None and any(_wants_original(m) for m in (*chosen.values(), tuning)):
            if index:
                raise ValueError("blocks must agree on whether they need the uncompressed network's inputs")
            original_hidden = jnp.copy(hidden)
        masks = {} if calibration.mask is None else {"mask": calibration.mask}
        now = _Stream(dense_block if old is None else old, {"x": hidden, **masks})
        original = None if original_hidden is None else _Stream(dense_block, {"x": original_hidden, **masks})
        tuners = [m for m in (*dict.fromkeys(chosen.values()), tuning) if block_rule.knows(m)] if old is None else []
        start, ahead = now.carry, None if original is None else original.carry
        if not tuners:
            # Only tuning comes back to what the block read and was; hidden states are what memory goes to.
            del start, ahead, hidden, dense_block
        infos: dict[str, MatrixInfo] = {}
        for number, stage in enumerate(model.stages):
            todo = [p for p in stage.weights if p in chosen]
            statistics = tuple(dict.fromkeys(s for s in (statistic_for(chosen[p]) for p in todo) if s is not None))
            record, changed, original_changed = compile_then_run(
                _advance,
                stage.advance,
                statistics,
                now.block,
                now.carry,
                None if original is None else original.block,
                None if original is None else original.carry,
                calibration.mask,
            )
            now = now._replace(carry=now.carry | changed)
            original = None if original is None else original._replace(carry=original.carry | original_changed)
            if old is not None or not todo:
                continue
            stage_key = None if key is None else jax.random.fold_in(key, index * len(model.stages) + number)
            leaves, stage_infos = _compress_stage(index, now.block, todo, chosen, record, stage_key)
            now = now._replace(block=replace(now.block, leaves))
            infos.update(stage_infos)
        for number, method in enumerate(tuners):
            step_key = None if key is None else jax.random.fold_in(key, 2**31 + index * len(tuners) + number)
            inputs = BlockInputs(_Run(model), start, ahead)
            now = now._replace(block=block_rule(now.block, method, dense_block, inputs, step_key))
        if tuners:
            hidden = _run_chunks(_Run(model), now.block, start)
        else:
            hidden = _finish(model, now.block, now.carry)
        if original is not None:
            original_hidden = _finish(model, original.block, original.carry)
        result = BlockResult(index, now.block, infos)
        del now, original, record
        if old is None:
            yield result


def _methods(block, cfg, rules, index, picked):
    """Method by path inside the block; rules speak of paths in the whole tree."""
    inside = resolve({"blocks": block}, all_rules(cfg, rules))
    chosen = {path.removeprefix("blocks/"): method for path, method in inside.items()}
    unknown = sorted(picked.keys() - weights(block).keys())
    if unknown:
        raise ValueError(f"choices name {unknown} in block {index}, which has {sorted(weights(block))}")
    return {path: method for path, method in {**chosen, **picked}.items() if method is not None}


def _by_block(choices, num_blocks):
    """Choices by number of block and path inside it."""
    found: dict[int, dict[str, Any]] = {}
    for path, method in choices.items():
        head, number, inside = [*path.split("/", 2), "", ""][:3]
        if head != "blocks" or not number.isdecimal() or int(number) >= num_blocks or not inside:
            raise ValueError(f"choices must read blocks/<0 to {num_blocks - 1}>/<path>, got {path!r}")
        found.setdefault(int(number), {})[inside] = method
    return found


def _wants_original(method):
    return wants_original.knows(method) and wants_original(method)


def _compress_stage(index, block, todo, chosen, record, key):
    """Compresses the weights of one stage, those with one method together."""
    found = weights(block)
    leaves, infos = {}, {}
    for method in dict.fromkeys(chosen[p] for p in todo):
        paths = [p for p in todo if chosen[p] == method]
        own = None if statistic_for(method) is None else record
        for path in paths:
            check_input(f"blocks[{index}]/{path}", found[path], own, method)
        results = compile_then_run(compress_group_jit, tuple(found[p] for p in paths), own, key, cfg=method)
        for path, (leaf, info) in zip(paths, results, strict=True):
            leaves[path] = leaf
            if info is not None:
                infos[path] = info
    return leaves, infos


def quantize_blockwise(
    model: Blockwise,
    params: Any,
    tokens: ArrayLike,
    cfg: Any,
    *,
    mask: ArrayLike | None = None,
    rules: Mapping[str, Any] | None = None,
    tuning: Any = None,
    batch: int = 2,
    choices: Mapping[str, Any] | None = None,
    key: jax.Array | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, dict[str, MatrixInfo]]:
    """Compresses an in-memory model block by block; any method, despite the verb it is named after.

    Args:
      model: how to walk it, for example ``LlamaBlocks(cfg)``.
      params: the whole tree, with ``blocks`` stacked.
      tokens: calibration tokens, int ``[N, T]``.
      cfg, rules: a method, or rules by path.
      tuning: a config with a ``block_rule``, see :func:`compress_blocks`.
      mask: bool ``[N, T]``, tokens that count; None for all.
      batch: rows run at once.
      choices: configs of single weights of single blocks, see :func:`compress_blocks`.
      key: randomness for methods that use it.
      progress: called with (blocks done, blocks) after each block.

    Returns:
      The tree with stacked leaves, and per path of a compressed weight its :class:`MatrixInfo` stacked over blocks, NaN
      where a block's weight was left alone.
    """
    rest = {name: value for name, value in params.items() if name != "blocks"}
    done, infos = [], []
    for result in compress_blocks(
        model,
        rest,
        lambda i: jax.tree.map(lambda a: a[i], params["blocks"]),
        in_chunks(tokens, mask, batch),
        cfg,
        rules=rules,
        tuning=tuning,
        choices=choices,
        key=key,
    ):
        done.append(result.params)
        infos.append(result.infos)
        if progress is not None:
            progress(len(done), model.num_blocks)
    known = {path: info for block in infos for path, info in block.items()}
    stacked = {
        f"blocks/{path}": jax.tree.map(lambda *a: jnp.stack(a), *(block.get(path, _unknown(info)) for block in infos))
        for path, info in known.items()
    }
    return {**rest, "blocks": stack_blocks(done)}, stacked


def _unknown(info):
    return jax.tree.map(lambda a: jnp.full_like(a, jnp.nan if jnp.issubdtype(a.dtype, jnp.floating) else 0), info)
