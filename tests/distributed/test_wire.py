import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.distributed import wire_bytes

from .meshes import WORKERS, on_workers

N = 64
ROWS = jnp.ones((WORKERS, N))


def compiled(function, rows=ROWS):
    return on_workers(function).lower(rows).compile()


@pytest.mark.parametrize(
    "function, kind, expected",
    [
        (lambda x: jax.lax.psum(x, "workers"), "all-reduce", 2 * 3 / 4 * N * 4),
        (lambda x: jax.lax.all_gather(x, "workers"), "all-gather", 3 * N * 4),
        (lambda x: jax.lax.psum_scatter(x, "workers", tiled=True), "reduce-scatter", 3 / 4 * N * 4),
        (lambda x: jax.lax.all_to_all(x.reshape(4, -1), "workers", 0, 0), "all-to-all", 3 / 4 * N * 4),
        (lambda x: jax.lax.ppermute(x, "workers", [(i, (i + 1) % 4) for i in range(4)]), "collective-permute", N * 4),
    ],
)
def test_each_collective_has_its_formula(function, kind, expected):
    found = wire_bytes(compiled(function))
    assert [op.kind for op in found.ops] == [kind]
    assert found.always == expected and not found.branches
    assert found.ops[0].members == WORKERS


def test_the_compiled_dtype_counts():
    rows = ROWS.astype(jnp.uint8)
    assert wire_bytes(compiled(lambda x: jax.lax.all_gather(x, "workers"), rows)).always == 3 * N
    narrow = wire_bytes(compiled(lambda x: jax.lax.psum(x, "workers"), ROWS.astype(jnp.bfloat16)))
    width = {"f32": 4, "bf16": 2}[narrow.ops[0].dtypes[0]]  # the CPU backend widens it
    assert narrow.always == 2 * 3 / 4 * N * width


def test_loops_multiply_even_inside_loops():
    def run(x):
        def inner(_, x):
            return jax.lax.ppermute(x, "workers", [(i, (i + 1) % 4) for i in range(4)])

        return jax.lax.fori_loop(0, 3, lambda _, x: jax.lax.fori_loop(0, 5, inner, x), x)

    found = wire_bytes(compiled(run))
    assert found.always == 15 * N * 4
    assert {op.trips for op in found.ops} == {15}


def test_branches_are_counted_apart():
    def run(x):
        always = jax.lax.psum(jnp.sum(x), "workers")
        return jax.lax.cond(always > 3.0, lambda v: jax.lax.psum(v, "workers"), lambda v: v, x)

    found = wire_bytes(compiled(run))
    assert found.always == 2 * 3 / 4 * 4
    assert list(found.branches.values()) == [2 * 3 / 4 * N * 4]
    np.testing.assert_allclose(found.expected(0.1), 6 + 0.1 * 2 * 3 / 4 * N * 4)


def test_groups_are_those_of_the_collective():
    groups = [[0, 1], [2, 3]]
    found = wire_bytes(compiled(lambda x: jax.lax.psum(x, "workers", axis_index_groups=groups)))
    assert found.ops[0].members == 2 and found.always == 2 * 1 / 2 * N * 4


def test_asynchronous_and_tuple_forms():
    text = """HloModule m, entry_computation_layout={()->f32[]}, num_partitions=8

ENTRY %main (p: f32[8]) -> f32[64] {
  %ag = (f32[8]{0}, f32[64]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], dimensions={0}
  %a2a = (u8[16]{0}, u8[16]{0}, u8[16]{0}, u8[16]{0}) all-to-all(%x, %y, %z, %w), replica_groups={{0,1,2,3},{4,5,6,7}}
  %ar = f32[10]{0} all-reduce(%q), replica_groups={}, to_apply=%add
  ROOT %done = f32[64]{0} all-gather-done(%ag)
}
"""
    found = wire_bytes(text)
    assert [op.bytes_per_device for op in found.ops] == [7 / 8 * 64 * 4, 3 / 4 * 64, 2 * 7 / 8 * 40]


def test_a_program_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        wire_bytes("module @jit_f {}")
    assert wire_bytes(jax.jit(lambda x: x + 1).lower(1.0).compile()).always == 0
