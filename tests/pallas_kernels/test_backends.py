"""The choice of an implementation, and block sizes that were measured."""

import jax
import pytest

from pallas_kernels.backends import tuning
from pallas_kernels.backends.choose import choose, needs_gpu, on_gpu
from pallas_kernels.product_config import ProductConfig


def test_the_first_that_can_run_is_taken():
    assert choose("op", None, {"triton": "no GPU", "xla": None, "interpret": None}) == "xla"
    assert choose("op", None, {"triton": None, "xla": None}) == "triton"
    assert choose("op", "interpret", {"triton": "no GPU", "interpret": None}) == "interpret"


def test_one_that_cannot_run_says_why():
    with pytest.raises(ValueError, match="op: implementation='triton' cannot run: no GPU"):
        choose("op", "triton", {"triton": "no GPU", "xla": None})
    with pytest.raises(ValueError, match="must be one of triton, xla, got 'mosaic'"):
        choose("op", "mosaic", {"triton": None, "xla": None})
    with pytest.raises(ValueError, match="no implementation can run .*triton: no GPU; mosaic: too old"):
        choose("op", None, {"triton": "no GPU", "mosaic": "too old"})


def test_a_host_is_no_gpu():
    assert not on_gpu()
    assert "default backend is 'cpu'" in str(needs_gpu())
    with jax.default_device(jax.devices("cpu")[0]):
        assert not on_gpu()


def test_measured_block_sizes_are_kept_between_runs(monkeypatch, tmp_path):
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "below" / "tuning.json"))
    config = ProductConfig(block_m=16, block_n=32, tiles=1, splits=2, warps=2, stages=4)
    assert tuning.measured("op", "key", ProductConfig) is None
    tuning.remember("op", "key", config)
    tuning.remember("op", "other", ProductConfig(block_m=16, block_n=64, tiles=1, splits=1, warps=4, stages=4))
    assert tuning.measured("op", "key", ProductConfig) == config
    assert tuning.measured("op", "unknown", ProductConfig) is None
    tuning.tuning_file().write_text('{"op": {"key": {"block_m": 16}}}')
    tuning._read.cache_clear()
    assert tuning.measured("op", "key", ProductConfig) is None, "an entry of another version is ignored"


@pytest.fixture(autouse=True)
def forget():
    yield
    tuning._read.cache_clear()
