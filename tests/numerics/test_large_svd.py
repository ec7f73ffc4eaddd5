"""Subspace iteration against LAPACK on small matrices, and its memory on a large one."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.calibration import Record
from compressjax.driver import leaf_rule
from compressjax.factorization.afm import AFM
from compressjax.factorization.svd import SVD
from compressjax.numerics import large_svd
from compressjax.numerics.large_svd import is_large, leading_right, product_error, truncated_svd


def falling(rows, cols, seed=0):
    """A matrix with singular values that fall by a power."""
    rng = np.random.default_rng(seed)
    left, right = np.linalg.qr(rng.normal(size=(rows, cols)))[0], np.linalg.qr(rng.normal(size=(cols, cols)))[0]
    return jnp.asarray(left * (np.arange(1, cols + 1) ** -0.7) @ right, jnp.float32)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that a small matrix has several blocks, the last of them not full."""
    monkeypatch.setattr(large_svd, "_BLOCK", 2200)


@pytest.mark.parametrize("wide", [False, True])
def test_it_is_the_truncated_decomposition(wide):
    matrix = falling(190, 60).T if wide else falling(190, 60)
    left, values, right = jax.jit(truncated_svd, static_argnums=1)(matrix, 5)
    wanted = np.linalg.svd(np.asarray(matrix, np.float64))
    np.testing.assert_allclose(values, wanted[1][:5], rtol=1e-4)
    best = wanted[0][:, :5] * wanted[1][:5] @ wanted[2][:5]
    np.testing.assert_allclose((left * values[None]) @ right, best, atol=2e-3)
    np.testing.assert_allclose(left.T @ left, jnp.eye(5), atol=1e-4)
    np.testing.assert_allclose(right @ right.T, jnp.eye(5), atol=1e-4)
    error = float(product_error(matrix, left * values[None], right))
    assert error == pytest.approx(np.sum(wanted[1][5:] ** 2), rel=1e-3)


def test_weights_and_shift_give_weighted_principal_components():
    matrix = falling(190, 60) + 0.3
    weight = jnp.asarray(np.random.default_rng(1).gamma(0.5, size=190), jnp.float32)
    shift = weight @ matrix / jnp.sum(weight)
    basis, values = leading_right(matrix, 4, weight=weight, shift=shift)
    seen = np.sqrt(np.asarray(weight, np.float64))[:, None] * (np.asarray(matrix) - np.asarray(shift))
    wanted = np.linalg.svd(seen)
    np.testing.assert_allclose(values, wanted[1][:4], rtol=1e-3)
    np.testing.assert_allclose(basis @ basis.T, wanted[2][:4].T @ wanted[2][:4], atol=1e-2)
    left = (matrix - shift[None]) @ basis
    error = float(product_error(matrix, left, basis.T, weight=weight, shift=shift))
    assert error == pytest.approx(np.sum(wanted[1][4:] ** 2), rel=1e-3)


def test_a_rank_below_the_asked_one_leaves_zeros():
    thin = falling(190, 60)[:, :2] @ falling(60, 60)[:2]
    left, values, right = truncated_svd(thin, 4)
    assert float(values[2:].max()) < 1e-3 * float(values[0])
    np.testing.assert_allclose((left * values[None]) @ right, thin, atol=1e-4)
    assert bool(jnp.all(jnp.isfinite(left)))


def test_only_large_matrices_and_thin_ranks_take_this_way():
    assert is_large((32768, 4096), 64) and is_large((4096, 32768), 64)
    assert not is_large((32768, 4096), 1024) and not is_large((1536, 576), 8)
    with pytest.raises(ValueError, match=r"rank must be in 1..60 and rounds >= 1, got 61 and 6"):
        truncated_svd(jnp.ones((190, 60)), 61)


PEAK = """
import json, resource, sys
import jax.numpy as jnp, numpy as np
from compressjax.calibration import Record
from compressjax.factorization import lowrank_with_info
from compressjax.factorization.afm import AFM
from compressjax.factorization.svd import SVD
rows, cols, rank = 32768, 4096, 48
rng = np.random.default_rng(0)
table = rng.standard_normal((rows, cols), np.float32)
table *= np.float32(0.01)
for start in range(0, rows, 1024):  # in pieces: a product of the whole would be a second table
    table[start : start + 1024] += rng.standard_normal((1024, rank), np.float32) @ np.eye(rank, cols, dtype=np.float32)
params = {"embed": {"embedding": jnp.asarray(table)}}
del table
counts = jnp.asarray(rng.integers(1, 9, rows), jnp.float32)
stats = {"embed/embedding": Record(count=jnp.sum(counts), x_sum=counts)}
name = sys.argv[1]
cfg = {"svd": SVD(rank=rank), "afm": AFM(rank=rank)}[name]
_, infos = lowrank_with_info(params, {"embed/embedding": cfg}, stats=stats if name == "afm" else None)
info = infos["embed/embedding"]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak": peak, "left": float(info.error / info.energy)}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["svd", "afm"])
def test_a_table_of_half_a_gigabyte_is_factorised_in_two(name, repository):
    """32,768 x 4,096 float32 are 512 MiB; the peak is that of the whole process, imports and compiler included."""
    command = [sys.executable, "-c", PEAK, name]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    # Noise of 0.01 in 4,096 columns beside 48 columns of size 1.
    assert seen["left"] == pytest.approx(4096 * 1e-4 / (48 + 4096 * 1e-4), rel=0.05)
    assert seen["peak"] < 2e9


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [SVD(rank=48), AFM(rank=48)], ids=["svd", "afm"])
def test_the_compiled_program_holds_no_second_table(cfg, monkeypatch):
    monkeypatch.undo()
    table = jax.ShapeDtypeStruct((32768, 4096), jnp.float32)
    record = Record(count=jax.ShapeDtypeStruct((), jnp.float32), x_sum=jax.ShapeDtypeStruct((32768,), jnp.float32))
    run = jax.jit(lambda w, record: leaf_rule(w, cfg, record, None))
    memory = run.lower(table, record if isinstance(cfg, AFM) else None).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 32768 * 4096 * 4 / 10
