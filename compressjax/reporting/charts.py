"""Charts as inline SVG whose colours come from the page's style sheet, so that they follow light and dark mode."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

from compressjax.reporting.by_block import Grid
from compressjax.streaming import MatrixRow

_WIDTH = 960
_LEFT = 74
_RIGHT = 10


def error_chart(grid: Grid, *, method: str, compare: bool) -> str:
    """Relative output error by block on a logarithmic axis: a dot per matrix, a line through the blocks' means.

    Args:
      grid: the rows.
      method: its name.
      compare: show plain rounding too.
    """
    height, top, bottom = 300, 10, 34
    series: list[tuple[str, str, Callable[[MatrixRow], float]]] = [("method", method, lambda row: row.error)]
    if compare:
        series.insert(0, ("plain", "Round to nearest", lambda row: row.rounding_error))
    values = [v for _, _, read in series for row in grid.cells.values() if (v := read(row)) > 0]
    if not values:
        return ""
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = low - 0.06 * (high - low) - 0.03, high + 0.06 * (high - low) + 0.03

    def y(value: float) -> float:
        return top + (height - top - bottom) * (high - math.log10(max(value, 10**low))) / (high - low)

    x = _places(grid)
    parts = [_gridline(y(tick), f"{tick:g}") for tick in log_ticks(low, high)]
    parts += _block_labels(grid, x, height - bottom + 18)
    for name, title, read in series:
        for (block, _), row in grid.cells.items():
            tip = f"{row.path}: {title} {read(row):.5f}"
            parts.append(
                f'<circle class="dot-{name}" cx="{x(block):.1f}" cy="{y(read(row)):.1f}" r="3.2">'
                f"<title>{escape(tip)}</title></circle>"
            )
        means = [(x(block), y(_mean(map(read, grid.of_block(block))))) for block in grid.blocks]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in means)
        parts.append(f'<polyline class="line {name}" points="{points}"/>')
    return _svg(height, parts, "Relative output error by block")


def bits_chart(grid: Grid) -> str:
    """True bits per weight by block, weighted by the matrices' sizes."""
    height, top, bottom = 150, 18, 34
    bits = {
        block: sum(row.bits * row.parameters for row in rows) / sum(row.parameters for row in rows)
        for block in grid.blocks
        if (rows := grid.of_block(block))
    }
    if not bits:
        return ""
    ceiling = math.ceil(max(bits.values()))
    scale = (height - top - bottom) / ceiling
    x, width = _places(grid), _step(grid) * 0.72
    parts = [_gridline(height - bottom - scale * tick, f"{tick:g}") for tick in (0, ceiling / 2, ceiling)]
    for block, value in bits.items():
        parts.append(
            f'<rect class="bar" x="{x(block) - width / 2:.1f}" y="{height - bottom - scale * value:.1f}" rx="2" '
            f'width="{width:.1f}" height="{scale * value:.1f}"><title>block {block}: {value:.3f} bits</title></rect>'
        )
    parts += _block_labels(grid, x, height - bottom + 18)
    return _svg(height, parts, "Bits per weight by block")


def faintest(values: Sequence[float]) -> float:
    """The value that a logarithmic heat map draws faintest, with all below it: the 5th percentile.

    A single matrix with next to no error would otherwise leave the others no contrast.
    """
    return sorted(values)[len(values) // 20]


def heat_map(grid: Grid, read: Callable[[MatrixRow], float], *, kind: str, label: str, logarithmic: bool) -> str:
    """A cell per matrix, block by kind; the stronger the colour, the larger the value.

    Args:
      grid: the rows.
      read: the value of a row, not negative.
      kind: style class of the cells.
      label: what the value is.
      logarithmic: scale of the colour; linear starts at zero, and values over 1 are marked as bad.
    """
    cell, top = 27, 4
    height = top + cell * len(grid.kinds) + 30
    values = [v for row in grid.cells.values() if (v := read(row)) > 0]
    if not values:
        return ""
    low, high = math.log(faintest(values)), math.log(max(values))
    x, width = _places(grid), _step(grid)
    parts = []
    for line, name in enumerate(grid.kinds):
        y = top + line * cell
        parts.append(f'<text x="{_LEFT - 10}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for block in grid.blocks:
            row = grid.cells.get((block, name))
            value = 0.0 if row is None else read(row)
            if row is None:
                style, tip = 'class="empty"', f"block {block} {name}: left alone"
            elif not logarithmic and value > 1:
                style, tip = 'class="bad"', f"{row.path}: {label} {value:.3g}"
            else:
                level = (
                    (math.log(max(value, faintest(values))) - low) / (high - low)
                    if logarithmic and high > low
                    else value
                )
                style = f'class="{kind}" fill-opacity="{0.07 + 0.93 * min(max(level, 0.0), 1.0):.3f}"'
                tip = f"{row.path}: {label} {value:.3g}"
            parts.append(
                f'<rect {style} x="{x(block) - width / 2 + 0.75:.1f}" y="{y + 0.75:.1f}" rx="2.5" '
                f'width="{width - 1.5:.1f}" height="{cell - 1.5}"><title>{escape(tip)}</title></rect>'
            )
    parts += _block_labels(grid, x, top + cell * len(grid.kinds) + 18)
    return _svg(height, parts, f"{label} by block and matrix")


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten: 1, 2, 5 of each decade, or fewer where that would be many.

    Example:
      >>> log_ticks(-2.1, -0.9)
      [0.01, 0.02, 0.05, 0.1]
    """
    for steps in ((1, 2, 5), (1,)):
        decades = range(math.floor(low), math.ceil(high) + 1)
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) <= 9:
            break
    return ticks


def _step(grid: Grid) -> float:
    return (_WIDTH - _LEFT - _RIGHT) / len(grid.blocks)


def _places(grid: Grid) -> Callable[[int], float]:
    """Middle of a block's column."""
    order = {block: place for place, block in enumerate(grid.blocks)}
    return lambda block: _LEFT + (order[block] + 0.5) * _step(grid)


def _block_labels(grid: Grid, x: Callable[[int], float], y: float) -> Iterable[str]:
    every = max(1, math.ceil(len(grid.blocks) / 16))
    shown = [block for place, block in enumerate(grid.blocks) if place % every == 0]
    yield from (f'<text x="{x(block):.1f}" y="{y}" text-anchor="middle">{block}</text>' for block in shown)
    yield f'<text x="{_LEFT - 10}" y="{y}" text-anchor="end">block</text>'


def _gridline(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    )


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    inside = "".join(parts)
    return (
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg></div>"
    )
