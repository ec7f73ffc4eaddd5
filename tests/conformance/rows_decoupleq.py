"""decoupleQ's rows: it makes affine leaves with real zeros, which the general rows test already."""

from compressjax.quantization import GPTQ, DecoupleQ

from .row_types import MethodRow

LEAVES = ()
LEAF_TYPES: set[type] = set()
METHODS = (
    # At equal bits: groups of 64 with two 16-bit numbers against groups of 36 with a 16-bit scale and a 2-bit zero.
    MethodRow(DecoupleQ(bits=2, group=64), GPTQ(bits=2, group=36, grid="mse"), 2.5, slow=True),
    MethodRow(DecoupleQ(bits=2, group=64, polish=4), GPTQ(bits=2, group=36, grid="hessian"), 2.5),
    MethodRow(
        DecoupleQ(bits=3, group=-1, sym=True, max_iters=2),
        GPTQ(bits=3, group=-1, sym=True, grid="mse"),
        3.03,
        slow=True,
    ),
)
