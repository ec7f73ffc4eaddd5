"""Surrogates of a wave solver whose convolutions are trained in a tensor format from the start.

Paper: Boukraichi et al., 2023, arXiv 2304.04964: accuracy equal to classical convolutions with fewer trainable
parameters and less memory, less overfitting, less time. Only its abstract was to be had, so networks, data and sizes
are ours. To do as well as an over-sized network proves little: the narrower dense network of equal size is the baseline
that counts.
"""

import dataclasses
import statistics
import time

import jax

from benchmarks.claims.harness import Part, Row, asserted, not_comparable, printed
from benchmarks.wave_surrogate import NODES, Waves, relative_error, surrogate_loss, train, waves
from compressjax.factorization.tensor_conv import ConvStack, TensorConv, compress_spec, fit_conv, stack_cost

METHOD = "apriori-conv"
CLAIM = (
    "with filterwise kernels of rank 4 in every layer a wave surrogate has at most a third of the parameters and its "
    "error is within 1.15 of the dense network's, below that of the narrower dense network of equal size, and at most "
    "half of what cutting the trained dense kernels to the same rank leaves"
)
SETTING = (
    "finite elements on 32 x 32 nodes, a pulse in two layers of speed 0.5 to 1; from the fields now and a frame ago "
    "and the speed to the next four frames; encoder and decoder of four 5 x 5 convolutions, 16 channels; 400 "
    "simulations for training, 100 others for testing; Adam, each network at the best of four rates; relative L2 "
    "error, mean of 3 seeds"
)
ERROR = "relative error, filterwise rank 4 against dense"
_RANK, _INPUTS, _RESIZE = 4, 3, (1, 1, 1, 2)
_KIB_PER_PARAM = 4 / 1024
_RATES = (3e-3, 6e-3, 12e-3, 24e-3)  # chosen by simulations that are in neither set


def dense_net(channels: int) -> tuple[TensorConv, ...]:
    """Encoder and decoder of dense convolutions."""
    layers = ((channels, 2), (channels, 1), (channels, 1), (4, 1))
    return tuple(TensorConv(features=n, kernel_size=(5, 5), format="dense", strides=s) for n, s in layers)


def by_kernel(specs: tuple[TensorConv, ...]) -> ConvStack:
    """The network with every kernel multiplied out first, which trains fastest on CPUs; the function is the same."""
    return ConvStack(tuple(dataclasses.replace(layer, order="kernel") for layer in specs), resize=_RESIZE)


def params_of(specs: tuple[TensorConv, ...]) -> int:
    """Trainable numbers of a network."""
    return stack_cost(specs, _INPUTS, (NODES, NODES), _RESIZE).params


def networks(quick: bool) -> dict[str, tuple[TensorConv, ...]]:
    """Dense, in the format, and dense with at least as many parameters as in the format but fewer channels."""
    dense = dense_net(8 if quick else 16)
    small = compress_spec(dense, _INPUTS, rank=_RANK)
    channels = next(n for n in range(1, 99) if params_of(dense_net(n)) >= params_of(small))
    return {"dense": dense, "filterwise": small, "narrow": dense_net(channels)}


def accuracy(quick: bool) -> list[Row]:
    """Errors by network, over all data and over few."""
    steps, seeds = (4, (0,)) if quick else (1200, (0, 1, 2))
    count, starts = (4, 2) if quick else (400, 4)
    data, held, tuning = waves(count, starts, 0), waves(2 if quick else 100, starts, 1), waves(2 if quick else 50, 4, 4)
    nets = networks(quick)
    size = {name: params_of(specs) for name, specs in nets.items()}
    error: dict[str, float] = {}
    last, rate = {}, {}
    for name, specs in nets.items():
        net = by_kernel(specs)
        tried = {}
        for each in _RATES:
            params, _ = train(net, data, jax.random.key(9), steps=max(1, steps // 3), rate=each)
            tried[each] = float(relative_error(net, params, tuning))
        rate[name] = min(tried, key=tried.__getitem__)
        found = []
        for seed in seeds:
            last[name], _ = train(net, data, jax.random.key(seed), steps=steps, rate=rate[name])
            found.append(float(relative_error(net, last[name], held)))
        error[name] = statistics.mean(found)
    rows = [
        asserted(
            "parameters, filterwise rank 4 at most a third of dense",
            baseline=size["dense"],
            ours=size["filterwise"],
            limit=1 / 3,
            strict=False,
        ),
        asserted(ERROR, baseline=error["dense"], ours=error["filterwise"], limit=1.15, strict=False),
        asserted(
            "relative error, filterwise rank 4 under the narrower dense network of at least its size",
            baseline=error["narrow"],
            ours=error["filterwise"],
            note=f"{size['filterwise']} parameters against {size['narrow']}",
        ),
    ]
    cut = {
        f"conv{i}": fit_conv(last["dense"][f"conv{i}"]["kernel"], layer, bias=last["dense"][f"conv{i}"]["bias"])
        for i, layer in enumerate(nets["filterwise"])
    }
    after = float(relative_error(by_kernel(nets["filterwise"]), cut, held))
    rows.append(
        asserted(
            "relative error, trained in the format at most half of trained dense and then cut to the same rank",
            baseline=after,
            ours=error["filterwise"],
            limit=0.5,
            strict=False,
            note="the dense kernels of the last seed, cut by alternating least squares, not trained again",
        )
    )
    return [*rows, *_few(nets, held, quick, seeds, rate)]


def _few(nets, held: Waves, quick: bool, seeds, rate) -> list[Row]:
    """How much worse than on its own data a network is on new data, when trained on 50 simulations."""
    data = waves(2 if quick else 50, 2 if quick else 4, 2)
    gap, error = {}, {}
    for name in ("dense", "filterwise"):
        net = by_kernel(nets[name])
        steps = 4 if quick else 800
        trained = [train(net, data, jax.random.key(seed), steps=steps, rate=rate[name])[0] for seed in seeds]
        own = statistics.mean(float(surrogate_loss(net, p, data)) for p in trained)
        new = statistics.mean(float(surrogate_loss(net, p, held)) for p in trained)
        gap[name] = new / own
        error[name] = statistics.mean(float(relative_error(net, p, held)) for p in trained)
    why = "50 simulations: loss on new ones over loss on its own, the paper's less overfitting"
    return [
        printed("few simulations: generalisation gap", baseline=gap["dense"], ours=gap["filterwise"], why=why),
        printed("few simulations: relative error", baseline=error["dense"], ours=error["filterwise"], why=why),
    ]


def cost(quick: bool) -> list[Row]:
    """Products, activations and seconds, factor by factor and through the kernel."""
    nets = networks(quick)
    counts = {name: stack_cost(specs, _INPUTS, (NODES, NODES), _RESIZE) for name, specs in nets.items()}
    dense, small = counts["dense"], counts["filterwise"]
    rows = [
        asserted("multiply-accumulates per sample, factor by factor", baseline=dense.macs, ours=small.macs),
        printed(
            "KiB of parameters, float32",
            baseline=dense.params * _KIB_PER_PARAM,
            ours=small.params * _KIB_PER_PARAM,
            why="biases counted; follows from the number of parameters",
        ),
        printed(
            "activations of one step per sample at their peak, factor by factor",
            baseline=dense.peak,
            ours=small.peak,
            why="filterwise kernels hold R numbers per output on the way, so less memory is true of parameters only",
        ),
    ]
    x = waves(2 if quick else 16, 1, 3).inputs
    seconds = {"dense": _seconds(ConvStack(nets["dense"], resize=_RESIZE), x)}
    for order in ("factors", "kernel"):
        specs = tuple(dataclasses.replace(layer, order=order) for layer in nets["filterwise"])
        seconds[order] = _seconds(ConvStack(specs, resize=_RESIZE), x)
        rows.append(
            printed(
                f"milliseconds of a forward pass, batch {len(x)}, {order}",
                baseline=1e3 * seconds["dense"],
                ours=1e3 * seconds[order],
                why="CPU; passes along an axis move much and multiply little, so fewer products need not be faster",
            )
        )
    why = "the abstract gives no figures, and its networks and mesh are not described there"
    return [*rows, not_comparable("training time saved in the paper", why=why)]


def _seconds(net: ConvStack, x: jax.Array) -> float:
    """Least of several forward passes."""
    params = net.init(jax.random.key(0), x[:1])["params"]
    run = jax.jit(lambda p, x: net.apply({"params": p}, x))
    jax.block_until_ready(run(params, x))
    found = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(run(params, x))
        found.append(time.perf_counter() - start)
    return min(found)


PARTS = {
    "accuracy": Part(run=accuracy, about="errors of dense, narrow and tensor-format networks", minutes=8),
    "cost": Part(run=cost, about="products, activations and seconds by order", minutes=0.5),
}
