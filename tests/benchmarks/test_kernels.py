"""The table in the documentation, and the timing command as far as a machine without a GPU can run it."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.kernels import __main__ as proofs
from benchmarks.kernels import table, time
from pallas_kernels.affine_matmul.specs import spec


def test_documentation_shows_the_committed_rows():
    text = table.DOCUMENT.read_text(encoding="utf-8")
    assert table.filled(text) == text, "run `python -m benchmarks.kernels.table`"
    assert all(f"<!-- kernels:{op} -->" in text for op in proofs.OPERATIONS)


def test_an_operation_that_was_not_compiled_says_how(tmp_path):
    text = "a\n<!-- kernels:some_op -->\nold\n<!-- /kernels -->\nb\n"
    assert "`python -m benchmarks.kernels some_op --write`" in table.filled(text, tmp_path)


def test_fresh_rows_replace_known_ones_in_the_order_of_the_cases():
    known = [{"case": case, "target": "H100", "n": 1} for case in ("b", "a", "gone")]
    fresh = [{"case": "b", "target": "H100", "n": 2}, {"case": "b", "target": "A100", "n": 2}]
    rows = proofs.merged(known, fresh, ["a", "b"])
    found = [(row["case"], row["target"], row["n"]) for row in rows]
    assert found == [("a", "H100", 1), ("b", "H100", 2), ("b", "A100", 2)]


def test_times_are_medians_per_call():
    shapes = [jax.ShapeDtypeStruct((64,), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.uint32)]
    seconds = time.seconds_per_call(lambda x, n: x * n.astype(jnp.float32), shapes, samples=3, cold_bytes=1024)
    assert 0 < seconds < 1
    first, again = (time.random_like(shapes, 5) for _ in range(2))
    assert all(jnp.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize(
    "op", ["outlier_matmul", "sign_lowrank_matmul", "blockwise_adam", "group_sparse_matmul", "w4ax_matmul"]
)
def test_random_arguments_are_made_valid(op):
    """The smallest case of each operation whose arguments name places or must be positive."""
    case = min(proofs.cases(op), key=lambda case: case.least_bytes)
    args = case.valid(time.random_like(case.args, 0))
    assert jax.tree.map(jnp.shape, args) == jax.tree.map(lambda a: a.shape, case.args)
    if op == "outlier_matmul":
        x, _, outliers = args
        assert int(outliers.inputs.max()) < x.shape[1]
        assert int(outliers.starts[-1]) == outliers.values.shape[0]
        assert bool(jnp.all(jnp.diff(outliers.starts) >= 0))
    elif op == "blockwise_adam":
        assert bool(jnp.all(args[1].v_scale >= 0)) and 0 < float(args[2].correction2) < 1
    elif op == "group_sparse_matmul":
        x, stored = args
        assert int(stored.index.max()) < x.shape[1] // 16
        assert int(stored.row_ptr[-1]) == stored.index.shape[0]
    elif op == "w4ax_matmul":
        x, weight = args
        assert jnp.array_equal(jnp.sort(weight.perm), jnp.arange(x.shape[1], dtype=weight.perm.dtype))
        assert 0 <= int(weight.n_hi) <= weight.scale.shape[0]
    else:
        assert int(args[1].loaded) == args[1].slots.shape[0] == args[1].signs.shape[0]


def test_candidates_differ_and_start_from_the_rule():
    found = list(time.candidates(spec("Llama-3-8B/q", 1)))
    assert len(set(found)) == len(found) > 20


def test_bandwidth_by_name():
    assert time.bandwidth_of("NVIDIA H100 80GB HBM3") == 3.35e12
    assert time.bandwidth_of("some other GPU") is None


def test_without_a_gpu_there_is_nothing_to_time(capsys):
    assert time.main([]) == 2
    assert "nothing to time: it needs an NVIDIA GPU" in capsys.readouterr().err


def test_an_unknown_operation_is_refused(capsys):
    with pytest.raises(SystemExit):
        proofs.main(["no_such_op"])
    assert "no operation no_such_op" in capsys.readouterr().err


def test_cases_of_another_gpu_are_not_timed():
    named = {case.name: case for case in proofs.cases("affine_matmul")}
    case = named["Llama-3-8B/q-w4g128-int-bfloat16-m512"]
    assert time.made_for_this_gpu(case)
    assert not time.made_for_this_gpu(named[f"{case.name}-mosaic"])
