"""What tests of kernels share: a compilation that costs little, and a clear word where kernels cannot be compiled."""

import jax
import pytest

from pallas_kernels.proof import toolchain


@pytest.fixture(scope="session")
def light_jit():
    """``jax.jit`` that spends less on compiling, for the interpreter's programs run once on a few numbers."""

    def wrap(fn):
        return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})

    return wrap


@pytest.fixture(scope="session")
def compiler():
    """Skips where the packages that compile kernels without a GPU are not installed."""
    lack = toolchain.missing()
    if lack is not None:
        pytest.skip(lack)
