"""``python -m benchmarks.comm.scaling``: step-time estimates for machines that are not here, for docs/scaling.md.

Nothing is measured: the estimates come from bytes by the formulas that tests hold against compiled programs, public
figures of links and chips, and the assumptions written in the document.
"""

import dataclasses
import sys

_FLOPS = 0.4 * 989e12  # bfloat16 of an H100 SXM at 40 % of its peak
_MEMORY = 3.35e12 * 0.8
_NVLINK = (450e9, 3e-6)
# Bytes per second of one GPU and seconds per hop. Eight GPUs share a node's Ethernet card; each has its own InfiniBand.
_LINKS = {"NVLink": _NVLINK, "InfiniBand": (50e9, 5e-6), "100 GbE": (12.5e9 / 8, 25e-6)}
_GPUS = (8, 32, 128, 512, 1024, 4096)


@dataclasses.dataclass(frozen=True)
class Network:
    """A decoder: parameters, width and layers of its matrices."""

    name: str
    params: float
    width: int
    layers: int


_SMALL, _LARGE = Network("1.3 B", 1.3e9, 2048, 24), Network("7 B", 6.7e9, 4096, 32)
SETTINGS = ((_SMALL, 8192), (_SMALL, 1024), (_LARGE, 1024))  # network, tokens per GPU and step


def compute_seconds(net: Network, tokens: int) -> float:
    """Forward and backward of a step."""
    return 6 * net.params * tokens / _FLOPS


def message(net: Network, method: str) -> tuple[float, str, float]:
    """Bytes of a worker's message, how it travels, and seconds to make and read it.

    Matrices are taken as width x 4 width; savings of L-GreCo over uniform levels are those its claim asserts, at rank
    32 assumed to be those at rank 4.
    """
    passes = net.params * 4 * 5 / _MEMORY  # three reads and two writes of the gradient
    rows, cols = net.width, 4 * net.width
    rank = 32
    low_rank = net.params * 4 * rank * (rows + cols) / (rows * cols)
    flops = 2 * 2 * net.params * rank * 2 / (_FLOPS / 2)
    return {
        "none": (net.params * 2.0, "reduce", 0.0),
        "PowerSGD 32": (low_rank, "reduce", passes + flops),
        "L-GreCo PowerSGD": (low_rank / 1.1, "reduce", passes + flops),
        "L-GreCo QSGD 4 bits": (net.params * (0.5 + 8 / 512) / 1.12, "reduce", 2 * passes),
        "L-GreCo TopK 1 %": (net.params * 0.01 * 8 / 1.7, "gather", 2 * passes),
    }[method]


METHODS = ("none", "PowerSGD 32", "L-GreCo PowerSGD", "L-GreCo QSGD 4 bits", "L-GreCo TopK 1 %")


def step_seconds(net: Network, tokens: int, method: str, gpus: int, link: tuple[float, float]) -> float:
    """Seconds of a step: compute, compression, and what of the communication half of the compute does not hide.

    Gradients are first summed inside each node of eight over NVLink, each GPU then owning an eighth of them; the eight
    shares travel between nodes side by side. On one node, or with NVLink everywhere, that is one ring.

    Args:
      net, tokens, method, gpus: the setting.
      link: bytes per second and GPU, and seconds per hop, between nodes.
    """
    size, way, extra = message(net, method)
    nodes = gpus // 8
    if link == _NVLINK or nodes == 1:
        sent, hops = _travel(size, way, gpus)
        seconds = sent / _NVLINK[0] + hops * _NVLINK[1]
    else:
        inside = 2 * 7 / 8 * net.params * 2 / _NVLINK[0]
        sent, hops = _travel(size / 8, way, nodes)
        seconds = inside + sent / link[0] + hops * link[1]
    compute = compute_seconds(net, tokens)
    return compute + extra + max(0.0, seconds - compute / 2)


def break_even(net: Network, tokens: int, method: str, gpus: int) -> float:
    """Bytes per second and GPU between nodes above which a method is slower than no compression; 0 if it always is."""
    low, high = 1e6, 1e12

    def pays(speed: float) -> bool:
        link = (speed, 25e-6)
        return step_seconds(net, tokens, method, gpus, link) < step_seconds(net, tokens, "none", gpus, link)

    if not pays(low):
        return 0.0
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


def _travel(size: float, way: str, members: int) -> tuple[float, int]:
    """Bytes that one member sends, and steps of latency: twice the depth of a tree, or of a ring of gathers."""
    depth = max(1, (members - 1).bit_length())
    if way == "gather":
        return (members - 1) * size, depth
    return 2 * (members - 1) / members * size, 2 * depth


def tables() -> str:
    """Milliseconds of a step, bold where compression pays, and the links on which it stops doing so."""
    out = []
    for net, tokens in SETTINGS:
        compute = 1e3 * compute_seconds(net, tokens)
        out.append(f"### {net.name} parameters, {tokens} tokens per GPU: {compute:.0f} ms of compute\n")
        for name, link in _LINKS.items():
            out.append(f"| {name} | " + " | ".join(f"{n}" for n in _GPUS) + " |")
            out.append("| --- | " + " | ".join("---:" for _ in _GPUS) + " |")
            plain = [step_seconds(net, tokens, "none", n, link) for n in _GPUS]
            for method in METHODS:
                found = [step_seconds(net, tokens, method, n, link) for n in _GPUS]
                cells = (_cell(t, p) for t, p in zip(found, plain, strict=True))
                out.append(f"| {method} | " + " | ".join(cells) + " |")
            out.append("")
    out.append("### Bandwidth per GPU above which compression costs time, GB/s, 512 GPUs\n")
    out.append("| method | " + " | ".join(f"{net.name}, {tokens} tokens" for net, tokens in SETTINGS) + " |")
    out.append("| --- | " + " | ".join("---:" for _ in SETTINGS) + " |")
    for method in METHODS[1:]:
        cells = (f"{break_even(net, tokens, method, 512) / 1e9:.2f}" for net, tokens in SETTINGS)
        out.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(out) + "\n"


def _cell(seconds: float, plain: float) -> str:
    text = f"{1e3 * seconds:.0f}"
    return f"**{text}**" if seconds < 0.999 * plain else text


if __name__ == "__main__":
    print(tables())
    sys.exit(0)
