"""Files are built here by hand, opcode by opcode where it matters; nothing of PyTorch is needed."""

import collections
import io
import pickle
import struct
import sys
import types
import zipfile
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.checkpoint.torch_file import read_torch

KINDS = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Global:
    """Pickles as a reference to ``module.name``, called with arguments if there are any."""

    def __init__(self, module: str, name: str, *args: Any):
        self.module, self.name, self.args = module, name, args


class Stored:
    """Pickles as the reference to a storage."""

    def __init__(self, *pid: Any):
        self.pid = pid


class Writer(pickle._Pickler):  # the one written in Python, to name any global
    """Writes the references that `torch.save` writes."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, Stored) else None

    def save_named(self, obj: Global) -> None:
        self.write(f"c{obj.module}\n{obj.name}\n".encode())
        if obj.args:
            self.save(obj.args)
            self.write(pickle.REDUCE)

    dispatch[Global] = save_named


def pickled(obj: Any) -> bytes:
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(obj)
    return buffer.getvalue()


def storage(key: str, kind: str, count: int, *view: Any) -> Stored:
    return Stored("storage", Global("torch", kind), key, "cpu", count, *view)


def tensor(stored: Stored, offset: int, size: tuple, stride: tuple) -> Global:
    return Global("torch._utils", "_rebuild_tensor_v2", stored, offset, size, stride, False, collections.OrderedDict())


@pytest.fixture
def zipped(tmp_path):
    """Writes the newer layout."""

    def write(obj: Any, storages: dict[str, bytes], folder: str = "archive/", **extra: bytes):
        path = tmp_path / "a.pth"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"{folder}data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
            for key, data in storages.items():
                archive.writestr(f"{folder}data/{key}", data)
            for name, data in extra.items():
                archive.writestr(f"{folder}{name}", data)
        return path

    return write


@pytest.fixture
def streamed(tmp_path):
    """Writes the older layout."""

    def write(
        obj: Any, storages: dict[str, tuple[int, bytes]], little: bool = True, magic: int = 0x1950A86A20F9469CFC6C
    ):
        path = tmp_path / "old.pth"
        facts = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        head = [pickle.dumps(o, 2) for o in (magic, 1001, facts)] + [pickled(obj), pickle.dumps(list(storages), 2)]
        tail = [struct.pack("<q", count) + data for count, data in storages.values()]
        path.write_bytes(b"".join(head + tail))
        return path

    return write


def state_dict(**tensors: Any) -> collections.OrderedDict:
    return collections.OrderedDict(tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(zipped, streamed, kind):
    values = np.array([1, 0, 3, 1, 0, 5], np.int64).astype(KINDS[kind])
    obj = state_dict(w=tensor(storage("0", kind, 6), 0, (2, 3), (3, 1)))
    new = zipped(obj, {"0": values.tobytes()}, version=b"3\n", byteorder=b"little")
    old = streamed(state_dict(w=tensor(storage("0", kind, 6, None), 0, (2, 3), (3, 1))), {"0": (6, values.tobytes())})
    for path in (new, old):
        (got,) = read_torch(path).values()
        assert got.dtype == np.dtype(KINDS[kind])
        np.testing.assert_array_equal(got, values.reshape(2, 3))


def test_offsets_and_strides(zipped):
    flat = np.arange(24, dtype=np.float32)
    stored = storage("7", "FloatStorage", 24)
    obj = state_dict(
        transposed=tensor(stored, 0, (6, 4), (1, 6)),
        part=tensor(stored, 5, (2, 3), (8, 2)),
        scalar=tensor(stored, 23, (), ()),
        spread=tensor(stored, 3, (2, 2), (0, 1)),
        empty=tensor(stored, 24, (0, 4), (4, 1)),
    )
    got = read_torch(zipped(obj, {"7": flat.tobytes()}))
    np.testing.assert_array_equal(got["transposed"], flat.reshape(4, 6).T)
    np.testing.assert_array_equal(got["part"], [[5, 7, 9], [13, 15, 17]])
    np.testing.assert_array_equal(got["scalar"], np.float32(23))
    np.testing.assert_array_equal(got["spread"], [[3, 4], [3, 4]])
    assert got["empty"].shape == (0, 4)
    assert np.shares_memory(got["transposed"], got["part"]) and not got["part"].flags.writeable


def test_parameters_and_module_metadata(zipped):
    parameter = Global(
        "torch._utils", "_rebuild_parameter", tensor(storage("0", "FloatStorage", 2), 0, (2,), (1,)), True, {}
    )
    obj = state_dict(w=parameter)
    obj._metadata = {"": {"version": 1}}  # as modules attach it
    np.testing.assert_array_equal(read_torch(zipped(obj, {"0": np.float32([1, 2]).tobytes()}))["w"], [1, 2])


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "numpy.core.multiarray._reconstruct", "torch.device"])
def test_other_globals_are_named_and_not_called(zipped, streamed, target):
    module, _, name = target.rpartition(".")
    obj = state_dict(w=Global(module, name, "exit 1"))
    for path in (zipped(obj, {}), streamed(obj, {})):
        with pytest.raises(ValueError, match=rf"{path.name} is not a readable .*refers to {target}"):
            read_torch(path)


def test_no_module_named_by_a_file_is_imported(zipped, monkeypatch):
    loud = types.ModuleType("loud_checkpoint_module")
    monkeypatch.setitem(sys.modules, "loud_checkpoint_module", loud)
    loud.fire = lambda: pytest.fail("called")
    with pytest.raises(ValueError, match="loud_checkpoint_module.fire"):
        read_torch(zipped(state_dict(w=Global("loud_checkpoint_module", "fire", 1)), {}))


@pytest.mark.parametrize(
    "offset, size, stride", [(-1, (2,), (1,)), (0, (2, 3), (3, 2)), (5, (2,), (1,)), (0, (2,), (-1,)), (0, (-2,), (1,))]
)
def test_views_beyond_the_storage_are_refused(zipped, offset, size, stride):
    obj = state_dict(w=tensor(storage("0", "FloatStorage", 6), offset, size, stride))
    with pytest.raises(ValueError, match="tensor w: offset"):
        read_torch(zipped(obj, {"0": bytes(24)}))


def test_contradictions_are_refused(zipped, streamed):
    good = state_dict(w=tensor(storage("0", "FloatStorage", 2), 0, (2,), (1,)))
    with pytest.raises(ValueError, match="archive/data/0 has 4 bytes, its tensors state 8"):
        read_torch(zipped(good, {"0": bytes(4)}))
    with pytest.raises(ValueError, match="no storage archive/data/0"):
        read_torch(zipped(good, {}))
    with pytest.raises(ValueError, match="byte order b'big'"):
        read_torch(zipped(good, {"0": bytes(8)}, byteorder=b"big"))
    with pytest.raises(ValueError, match="big-endian"):
        read_torch(streamed(good, {"0": (2, bytes(8))}, little=False))
    with pytest.raises(ValueError, match="0 has 3 values, its tensors state 2"):
        read_torch(streamed(good, {"0": (3, bytes(12))}))
    with pytest.raises(ValueError, match=r"storage keys \['1'\]"):
        read_torch(streamed(good, {"1": (2, bytes(8))}))
    twice = state_dict(
        a=tensor(storage("0", "FloatStorage", 2), 0, (2,), (1,)),
        b=tensor(storage("0", "HalfStorage", 4), 0, (4,), (1,)),
    )
    with pytest.raises(ValueError, match="contradictory storage"):
        read_torch(zipped(twice, {"0": bytes(8)}))
    with pytest.raises(ValueError, match="damaged tensor"):
        read_torch(zipped(state_dict(w=tensor(storage("0", "FloatStorage", 2), 0, (2,), (1, 1))), {"0": bytes(8)}))
    view = storage("0", "FloatStorage", 2, ("1", 0, 2))
    with pytest.raises(ValueError, match="unknown reference to a storage"):
        read_torch(streamed(state_dict(w=tensor(view, 0, (2,), (1,))), {"0": (2, bytes(8))}))


@pytest.mark.parametrize(
    "obj, message", [([1], "holds a list"), ({"epoch": 3}, "'epoch' is a int"), ({"model": {}}, "'model' is a dict")]
)
def test_other_contents_are_named(zipped, obj, message):
    with pytest.raises(ValueError, match=message):
        read_torch(zipped(obj, {}))


def test_a_few_bytes_cannot_ask_for_gigabytes(zipped):
    # {} stored in the memo under 2**31 - 1: the unpickler's table would take 32 GB.
    with pytest.raises(ValueError, match="stores object 2147483647"):
        read_torch(zipped(b"\x80\x02}r\xff\xff\xff\x7f.", {}))


def test_every_truncation_is_a_value_error(zipped, streamed, tmp_path):
    obj = state_dict(w=tensor(storage("0", "FloatStorage", 3), 0, (3,), (1,)))
    for path in (zipped(obj, {"0": bytes(12)}), streamed(obj, {"0": (3, bytes(12))})):
        whole = path.read_bytes()
        cut = tmp_path / "cut.pth"
        for length in range(len(whole)):
            cut.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="cut.pth is not a readable PyTorch file"):
                read_torch(cut)


def test_flipped_bytes_never_give_anything_but_tensors_or_a_value_error(zipped, streamed):
    obj = state_dict(w=tensor(storage("0", "FloatStorage", 3), 0, (3,), (1,)))
    rng = np.random.default_rng(0)
    for path in (zipped(obj, {"0": bytes(12)}), streamed(obj, {"0": (3, bytes(12))})):
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(150):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=2)] ^= rng.integers(1, 255, 2).astype(np.uint8)
            path.write_bytes(damaged.tobytes())
            try:
                assert all(isinstance(v, np.ndarray) for v in read_torch(path).values())
            except ValueError as error:
                assert str(path) in str(error)


def test_foreign_files(tmp_path, streamed):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    with pytest.raises(ValueError, match=r"text.pth is not a readable PyTorch file"):
        read_torch(tmp_path / "text.pth")
    with pytest.raises(ValueError, match="magic number"):
        read_torch(streamed({}, {}, magic=1))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(ValueError, match=r"0 files data.pkl"):
        read_torch(tmp_path / "b.zip")
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "absent.pth")
