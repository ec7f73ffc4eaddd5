"""Dense kernels put into tensor formats afterwards."""

import jax.numpy as jnp
import numpy as np
import pytest

from compressjax.factorization.tensor_conv import TensorConv, conv_kernel, factor_shapes, fit_conv

CIN, OUT, K = 4, 3, (3, 3)


def random_kernel(seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*K, CIN, OUT)), jnp.float32)


def layer(format, rank, **fields):
    return TensorConv(features=OUT, kernel_size=K, format=format, rank=rank, use_bias=False, **fields)


def miss(kernel, cfg, **options):
    p = fit_conv(kernel, cfg, **options)
    assert {name: value.shape for name, value in p.items()} == factor_shapes(cfg, CIN)
    return float(jnp.linalg.norm((conv_kernel(p, cfg) - kernel).ravel()) / jnp.linalg.norm(kernel.ravel()))


@pytest.mark.parametrize(
    "format, rank", [("dense", 1), ("filterwise", 9), ("channelwise", 3), ("cp", 27), ("tucker2", 4)]
)
def test_a_format_that_holds_every_kernel_holds_this_one(format, rank):
    # Rank 9 = 3 x 3 taps is enough per filter, 3 per pair of channels, 27 = 3 x 3 x 3 for all at once.
    assert miss(random_kernel(), layer(format, rank)) < 1e-5


@pytest.mark.parametrize("format, rank", [pytest.param("filterwise", 2, marks=pytest.mark.slow), ("tucker2", 2)])
def test_a_kernel_of_the_format_is_found_again(format, rank):
    cfg = layer(format, rank)
    rng = np.random.default_rng(3)
    p = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in factor_shapes(cfg, CIN).items()}
    assert miss(conv_kernel(p, cfg), cfg, sweeps=60, starts=3) < 1e-2


@pytest.mark.slow
def test_more_products_leave_less():
    kernel = random_kernel(1)
    left = [miss(kernel, layer(format, rank)) for format, rank in (("filterwise", 2), ("filterwise", 4), ("cp", 4))]
    assert left[1] < left[0] < left[2] and left[1] > 0.05  # products of one's own are worth more than shared ones


def test_pairs_of_channels_are_cut_by_their_singular_values():
    kernel = random_kernel(2)
    values = np.linalg.svd(np.moveaxis(np.asarray(kernel, np.float64), (-2, -1), (0, 1)), compute_uv=False)
    best = np.sqrt(np.sum(values[..., 2:] ** 2)) / np.linalg.norm(kernel)
    assert miss(kernel, layer("channelwise", 2)) == pytest.approx(best, rel=1e-4)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"kernel must be \(3, 3, 'in', 3\), got \(3, 4, 3\)"):
        fit_conv(random_kernel()[0], layer("cp", 2))
    with pytest.raises(ValueError, match="bias must be given exactly when use_bias is set, got use_bias=False"):
        fit_conv(random_kernel(), layer("cp", 2), bias=jnp.zeros(OUT))
    with pytest.raises(ValueError, match="sweeps and starts must be >= 1, got 0 and 3"):
        fit_conv(random_kernel(), layer("cp", 2), sweeps=0)
