import dataclasses
import errno
import json
import os
import zlib
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from compressjax.checkpoint import array_store, saving
from compressjax.checkpoint.atomic_directory import retired_path, staging_path
from compressjax.checkpoint.saving import is_checkpoint, load, load_files, load_metadata, save
from compressjax.leaf import Affine, Codebook, Sum, Transposed, leaf, pack_affine, pack_codebook
from compressjax.ops import dense, logical_shape

INTEGERS = ["bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32", "uint32"]
DTYPES = [*INTEGERS, "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "complex64"]


def affine(seed=0, zero_kind="int", lead=(3,)):
    r = np.random.default_rng(seed)
    scale = jnp.asarray(r.normal(size=(*lead, 3, 8)), jnp.bfloat16)
    zero = {
        "int": jnp.asarray(r.integers(0, 8, scale.shape), jnp.uint8),
        "real": jnp.asarray(r.normal(size=scale.shape), jnp.float16),
        "none": None,
    }[zero_kind]
    codes = jnp.asarray(r.integers(0, 8, (*lead, 40, 8)), jnp.uint8)
    return pack_affine(codes, scale, zero, bits=3, group=16, zero_kind=zero_kind)


def codebook(seed=0):
    r = np.random.default_rng(seed)
    return pack_codebook(
        jnp.asarray(r.integers(0, 5, (40, 8)), jnp.uint8), jnp.asarray(r.normal(size=(1, 5, 8)), jnp.float32), group=-1
    )


def model():
    return {
        "embed": {"embedding": Transposed(inner=affine(1, "real", ()))},
        "blocks": {"q": {"kernel": affine()}, "k": {"kernel": affine(2, "none"), "bias": jnp.zeros((3, 8))}},
        "head": {"kernel": Sum(parts=(codebook(), affine(3, lead=()), jnp.ones((40, 8), jnp.bfloat16)))},
    }


def assert_same(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert type(a) is type(b)
        if hasattr(a, "dtype"):
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(a) == jax.random.key_impl(b)
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b


def siblings(directory):
    return sorted(path.name for path in directory.parent.iterdir())


def rewrite_manifest(directory, **changes):
    path = directory / "compressjax-tree.json"
    body = {k: v for k, v in {**json.loads(path.read_text()), **changes}.items() if k != "crc32"}
    path.write_text(json.dumps({"crc32": zlib.crc32(saving._canonical(body)), **body}))


# ---------------------------------------------------------------------------------------------- round trips


def test_a_compressed_model_comes_back_bit_for_bit(tmp_path):
    save(tmp_path / "m", model())
    got = load(tmp_path / "m")
    assert_same(got, model())
    assert isinstance(got["blocks"]["q"]["kernel"], Affine)
    assert isinstance(got["head"]["kernel"].parts[0], Codebook)
    assert siblings(tmp_path / "m") == ["m"]


def test_every_dtype_shape_and_container(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (3, 5))
    tree = {
        "dtypes": {d: jnp.asarray(bits).astype(d) for d in DTYPES},
        "nan with payload": jax.lax.bitcast_convert_type(
            jnp.asarray([0x7FC00123, 0x80000000], jnp.uint32), jnp.float32
        ),
        "shapes": [jnp.float32(3), jnp.zeros((0, 3)), jnp.zeros((2, 0), jnp.uint32), jnp.ones((1, 1, 1, 2))],
        "numpy": (np.arange(3, dtype=np.int64), np.full((), 2.5), np.zeros((0,), np.int64)),
        "scalars": [1, True, 0.1, float("inf"), "name", None],
        "keys": (jax.random.key(3), jax.random.split(jax.random.key(1, impl="rbg"), 4)),
        "empty": [{}, [], ()],
        "odd / names": {"a.b": jnp.ones(1), "a": {"b": jnp.zeros(1)}, "ü": jnp.ones(2)},
        "integer keys": {0: jnp.ones(1), 10: jnp.zeros(1)},
    }
    save(tmp_path / "m", tree)
    assert_same(load(tmp_path / "m"), tree)


@pytest.mark.parametrize("tree", [{}, None, [], 3, {"a": jnp.zeros((0,))}])
def test_a_tree_without_stored_arrays(tmp_path, tree):
    save(tmp_path / "m", tree)
    assert_same(load(tmp_path / "m"), tree)


def test_a_bare_array_and_a_bare_leaf(tmp_path):
    for i, tree in enumerate((jnp.arange(5), affine())):
        save(tmp_path / str(i), tree)
        assert_same(load(tmp_path / str(i)), tree)


def test_metadata_and_files_ride_along(tmp_path):
    save(tmp_path / "m", {}, metadata={"bits": 3, "names": ["a"]}, files={"tokenizer.json": b"\x00{}"})
    assert load_metadata(tmp_path / "m") == {"bits": 3, "names": ["a"]}
    assert load_files(tmp_path / "m") == {"tokenizer.json": b"\x00{}"}
    (tmp_path / "m" / "tokenizer.json").write_bytes(b"\x01{}")
    with pytest.raises(ValueError, match="tokenizer.json is missing or damaged"):
        load_files(tmp_path / "m")


def test_a_leaf_type_of_ones_own(tmp_path):
    @leaf(static=("factor", "name", "kind"))
    class Scaled:
        inner: jax.Array
        factor: float
        name: tuple[str, int | None]
        kind: np.dtype

    dense.register(Scaled)(lambda w: w.factor * dense(w.inner))
    logical_shape.register(Scaled)(lambda w: logical_shape(w.inner))
    tree = {"w": Scaled(inner=affine(lead=()), factor=0.1, name=("x", None), kind=np.dtype("int8"))}
    save(tmp_path / "m", tree)
    got = load(tmp_path / "m")
    assert_same(got, tree)
    assert type(got["w"]) is Scaled
    structure = json.loads((tmp_path / "m" / "compressjax-tree.json").read_text())["structure"]
    structure["dict"][0][1]["leaf"] = "Unheard"
    rewrite_manifest(tmp_path / "m", structure=structure)
    with pytest.raises(ValueError, match="w: leaf type 'Unheard' of module .* is not registered .*import the module"):
        load(tmp_path / "m")


# ---------------------------------------------------------------------------------------------- like and shardings


def optimizer_state():
    params = {"w": jnp.ones((4, 3)), "b": jnp.zeros((3,), jnp.bfloat16)}
    transform = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3), optax.ema(0.9))
    grads = jax.tree.map(jnp.ones_like, params)
    return transform.update(grads, transform.init(params), params)[1]


@pytest.mark.standard_promotion("optax multiplies bfloat16 updates by float32 scalars")
def test_an_optimizer_state_needs_like_for_its_named_tuples(tmp_path):
    state = optimizer_state()
    save(tmp_path / "m", state)
    got = load(tmp_path / "m", like=state)
    assert_same(got, state)
    assert isinstance(got[1][0], optax.ScaleByAdamState)
    abstract = load(tmp_path / "m", like=jax.eval_shape(lambda: state))
    assert_same(abstract, state)
    plain = load(tmp_path / "m")
    assert set(plain[1][0]) == {"count", "mu", "nu"}
    chex.assert_trees_all_equal(plain[1][0]["mu"], state[1][0].mu)


@pytest.mark.parametrize(
    "like, message",
    [
        ({"a": jnp.ones((2, 3))}, r"only in the checkpoint: \['w'\]; only in `like`: \[\]"),
        ({"a": jnp.ones((2, 4)), "w": affine()}, r"a: float32\[2, 3\] in the checkpoint, float32\[2, 4\] in `like`"),
        ({"a": jnp.ones((2, 3), jnp.bfloat16), "w": affine()}, r"a: float32\[2, 3\] .* bfloat16\[2, 3\]"),
        ({"a": jnp.ones((2, 3)), "w": jnp.ones(3)}, "w: a Affine leaf in the checkpoint, ArrayImpl in `like`"),
        ({"a": jnp.ones((2, 3)), "w": affine(zero_kind="real")}, "w: zero_kind='int' in the checkpoint, 'real'"),
        ({"a": None, "w": affine()}, "a: an array in the checkpoint, None in `like`"),
        ([1, 2], "tree: a dict in the checkpoint, list in `like`|only in"),
    ],
)
def test_like_must_fit(tmp_path, like, message):
    save(tmp_path / "m", {"a": jnp.ones((2, 3)), "w": affine()})
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m", like=like)


def test_sharded_arrays_save_and_restore_onto_a_mesh(tmp_path):
    assert jax.device_count() >= 4
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    both, columns, every = (NamedSharding(mesh, spec) for spec in (P("x", "y"), P(None, "x"), P()))
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    w = affine(zero_kind="none", lead=())
    tree = {"a": jax.device_put(whole, both), "w": jax.device_put(w, columns), "n": jnp.zeros((0, 4))}
    save(tmp_path / "m", tree)

    plain = load(tmp_path / "m")
    np.testing.assert_array_equal(plain["a"], whole)
    assert not plain["a"].committed

    again = load(tmp_path / "m", shardings={"a": columns, "w": columns, "n": both})
    assert [again["a"].sharding, again["w"].codes.sharding, again["n"].sharding] == [columns, columns, both]
    chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(tree))

    like = load(tmp_path / "m", like=tree)
    assert (like["a"].sharding, like["w"].codes.sharding) == (both, columns)
    assert not like["n"].committed

    by_field = dataclasses.replace(w, codes=columns, scale=every)
    got = load(tmp_path / "m", shardings={"a": None, "w": by_field, "n": None})
    assert (got["w"].codes.sharding, got["w"].scale.sharding) == (columns, every)
    assert load(tmp_path / "m", shardings=every)["a"].sharding.is_fully_replicated


@pytest.mark.parametrize("wrong", [{"b": None}, "x", {"a": "x"}])
def test_shardings_must_fit(tmp_path, wrong):
    save(tmp_path / "m", {"a": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="`shardings` has no entry 'a'|wanted a Sharding"):
        load(tmp_path / "m", shardings=wrong)
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("x",))
    with pytest.raises(ValueError, match=r"a: shape \(3, 3\) does not fit its sharding"):
        load(tmp_path / "m", shardings=NamedSharding(mesh, P("x")))


# ---------------------------------------------------------------------------------------------- refusals


@jax.tree_util.register_pytree_node_class
class Unregistered:
    def __init__(self, a):
        self.a = a

    def tree_flatten(self):
        return (self.a,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def test_other_nodes_come_back_through_like(tmp_path):
    save(tmp_path / "m", Unregistered(jnp.ones(2)))
    np.testing.assert_array_equal(load(tmp_path / "m", like=Unregistered(jnp.zeros(2))).a, 1)


@pytest.mark.parametrize(
    "tree, error, message",
    [
        ({"a": {"b": object()}}, TypeError, "a/b: cannot store a value of type object"),
        ({"a": np.asarray(["x"])}, TypeError, "a: cannot store an array of dtype <U1"),
        ({"a": np.asarray([None])}, TypeError, "a: cannot store an array of dtype object"),
        ({"a": np.zeros(1, "datetime64[s]")}, TypeError, "a: cannot store an array of dtype datetime64"),
        ({("t",): 1}, TypeError, r"tree: dict keys must be strings or integers, got \('t',\)"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing(tmp_path, tree, error, message):
    with pytest.raises(error, match=message):
        save(tmp_path / "m", tree)
    assert list(tmp_path.iterdir()) == []


def test_deleted_and_traced_arrays(tmp_path):
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(ValueError, match="w: the array has been donated or deleted"):
        save(tmp_path / "m", {"w": gone})
    with pytest.raises(TypeError, match="x: cannot store a traced array"):
        jax.jit(lambda x: save(tmp_path / "m", {"x": x}))(jnp.ones(2))


def test_bad_metadata_and_file_names(tmp_path):
    with pytest.raises(TypeError, match="metadata must be JSON-able"):
        save(tmp_path / "m", {}, metadata={"a": object()})
    for name in ("a/b", "arrays", "compressjax-tree.json", "..", ""):
        with pytest.raises(ValueError, match="is not a plain file name"):
            save(tmp_path / "m", {}, files={name: b""})


def test_only_checkpoints_are_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match="holds files but no compressjax-tree.json"):
        save(tmp_path / "mine", {})
    with pytest.raises(FileExistsError, match="is a file"):
        save(tmp_path / "mine" / "thesis.tex", {})
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", {})
    with pytest.raises(FileExistsError, match="overwrite is False"):
        save(tmp_path / "empty", {}, overwrite=False)
    save(tmp_path / "a" / "b" / "c", {"x": jnp.ones(1)}, overwrite=False)
    assert is_checkpoint(tmp_path / "a" / "b" / "c") and not is_checkpoint(tmp_path / "mine")


def test_a_link_to_a_checkpoint_stays_a_link(tmp_path):
    save(tmp_path / "m", {"a": jnp.zeros(1)})
    (tmp_path / "latest").symlink_to(tmp_path / "m")
    save(tmp_path / "latest", {"a": jnp.ones(1)})
    assert (tmp_path / "latest").is_symlink()
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 1)


def test_missing_foreign_and_newer(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such checkpoint.*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        load(tmp_path / "file")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(ValueError, match="foreign is not a compressjax checkpoint"):
        load(tmp_path / "foreign")
    save(tmp_path / "m", {"a": jnp.ones(3)})
    rewrite_manifest(tmp_path / "m", version=saving.VERSION + 1)
    with pytest.raises(ValueError, match="m/compressjax-tree.json is of format version 2; this release reads up to 1"):
        load(tmp_path / "m")
    rewrite_manifest(tmp_path / "m", version=1, format="other")
    with pytest.raises(ValueError, match="is of format 'other'"):
        load(tmp_path / "m")


def test_float64_is_not_truncated_silently(tmp_path):
    with jax.enable_x64(True):
        save(tmp_path / "m", {"a": jnp.ones(3, jnp.float64)})
    with pytest.raises(ValueError, match="array 'a' is float64, which needs jax_enable_x64"):
        load(tmp_path / "m")


# Flips inside the storage driver's own index make its C++ callbacks print to stderr, not raise in Python.
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_no_damage_goes_unseen(tmp_path, damage):
    tree = {"w": affine(), "x": jnp.asarray(np.random.default_rng(0).normal(size=(30, 40)), jnp.float32)}
    save(tmp_path / "m", tree)
    random = np.random.default_rng(1)
    refused = set()
    for path in sorted(p for p in (tmp_path / "m").rglob("*") if p.is_file()):
        content = path.read_bytes()
        for _ in range(4 if damage == "flip" else 1):
            if damage == "flip" and content:
                at = int(random.integers(len(content)))
                path.write_bytes(
                    content[:at] + bytes([content[at] ^ (1 << int(random.integers(8)))]) + content[at + 1 :]
                )
            elif damage == "truncate":
                path.write_bytes(content[:-1])
            elif damage == "remove":
                path.unlink()
            try:
                assert_same(load(tmp_path / "m"), tree)
            except ValueError as error:
                assert str(tmp_path / "m") in str(error)
                refused.add(path)
            path.write_bytes(content)
    assert tmp_path / "m" / "compressjax-tree.json" in refused
    assert len(refused) >= 3
    assert_same(load(tmp_path / "m"), tree)


def test_a_flipped_bit_in_an_array_names_the_array(tmp_path, monkeypatch):
    save(tmp_path / "m", {"blocks": {"w": affine()}})
    records = json.loads((tmp_path / "m" / "compressjax-tree.json").read_text())["arrays"]
    records[0]["crc32"] ^= 1
    rewrite_manifest(tmp_path / "m", arrays=records)
    with pytest.raises(ValueError, match=r"/m: .*array 'blocks/w/codes' is damaged"):
        load(tmp_path / "m")


# ---------------------------------------------------------------------------------------------- atomicity in process


def test_a_full_disk_is_one_clear_error_and_leaves_the_old(tmp_path, monkeypatch):
    save(tmp_path / "m", {"a": jnp.zeros(3)})
    real = array_store.write_arrays

    def fill(directory, arrays):
        real(directory, arrays)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array_store, "write_arrays", fill)
    with pytest.raises(OSError, match="no space left on the disk.*older checkpoint kept.*/m") as caught:
        save(tmp_path / "m", {"a": jnp.ones(3)})
    assert caught.value.errno == errno.ENOSPC
    assert siblings(tmp_path / "m") == ["m"]
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 0)


def test_a_full_disk_reported_by_the_storage_driver_is_recognised():
    try:
        try:
            raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device [os_error_code='28']")
        except ValueError as inner:
            raise RuntimeError("worker failed") from inner
    except RuntimeError as outer:
        assert saving._is_disk_full(outer)
    assert not saving._is_disk_full(RuntimeError("other"))


def test_ctrl_c_leaves_the_old(tmp_path, monkeypatch):
    save(tmp_path / "m", {"a": jnp.zeros(3)})

    def interrupt(directory, arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(array_store, "write_arrays", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "m", {"a": jnp.ones(3)})
    assert siblings(tmp_path / "m") == ["m"]
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 0)


def test_a_failed_swap_puts_the_old_back(tmp_path, monkeypatch):
    save(tmp_path / "m", {"a": jnp.zeros(3)})
    real = Path.rename

    def rename(self, target):
        if self == staging_path(tmp_path / "m"):
            raise OSError(errno.EIO, "I/O error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="I/O error"):
        save(tmp_path / "m", {"a": jnp.ones(3)})
    assert siblings(tmp_path / "m") == ["m"]
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 0)


def test_load_recovers_between_the_two_renames(tmp_path):
    save(tmp_path / "m", {"a": jnp.zeros(3)})
    (tmp_path / "m").rename(retired_path(tmp_path / "m"))
    staging_path(tmp_path / "m").mkdir()
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 0)
    with pytest.raises(FileExistsError):
        save(tmp_path / "m", {}, overwrite=False)
    save(tmp_path / "m", {"a": jnp.ones(3)})
    np.testing.assert_array_equal(load(tmp_path / "m")["a"], 1)
    assert siblings(tmp_path / "m") == ["m"]
