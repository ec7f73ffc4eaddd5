"""Cases of the choice of the largest entries: every spec."""

from benchmarks.kernels.row import pass_case
from pallas_kernels.proof.report import Case
from pallas_kernels.topk_pack import specs as named
from pallas_kernels.topk_pack import topk_pack
from pallas_kernels.topk_pack.config import choose_config


def choice(spec: named.TopKSpec) -> Case:
    def call(x, *, implementation):
        return topk_pack(x, spec.layout, implementation=implementation)

    args = spec.arguments()
    values = choose_config(spec.size, spec.layout).values
    return pass_case(spec.name, kernel="topk_pack", call=call, args=args, step_bytes=values * args[0].dtype.itemsize)


CASES = tuple(choice(spec) for spec in named.SPECS)
