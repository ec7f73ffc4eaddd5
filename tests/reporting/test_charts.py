import re

import pytest

from compressjax.reporting.by_block import lay_out
from compressjax.reporting.charts import bits_chart, error_chart, faintest, heat_map, log_ticks


def numbers(svg: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, svg)]


def test_rows_are_laid_out_by_block_and_kind(rows, make_row):
    grid = lay_out([*rows, make_row("head/kernel", 0.1), make_row("blocks/x/attn/q/kernel", 0.1)])
    assert grid.blocks == (0, 1, 2) and grid.kinds == ("attn/q", "mlp/up")
    assert [row.path for row in grid.of_block(1)] == ["blocks/1/attn/q/kernel", "blocks/1/mlp/up/kernel"]


def test_blocks_are_in_numeric_order(make_row):
    assert lay_out([make_row(f"blocks/{i}/a/kernel", 0.1) for i in (10, 9, 0)]).blocks == (0, 9, 10)


def test_larger_errors_are_drawn_higher(rows):
    grid = lay_out(rows)
    svg = error_chart(grid, method="GPTQ", compare=False)
    heights = numbers(svg, r'<circle[^>]* cy="([\d.]+)"')
    errors = [row.error for row in grid.cells.values()]
    by_height = sorted(range(6), key=lambda i: (heights[i], i))
    assert by_height == sorted(range(6), key=lambda i: (-errors[i], i))
    assert svg.count("<polyline") == 1 and "dot-plain" not in svg


def test_equal_steps_on_the_axis_are_equal_factors(make_row):
    grid = lay_out([make_row(f"blocks/{i}/a/kernel", error) for i, error in enumerate((0.1, 0.01, 0.001))])
    top, middle, bottom = numbers(error_chart(grid, method="m", compare=False), r'<circle[^>]* cy="([\d.]+)"')
    assert middle - top == pytest.approx(bottom - middle, abs=0.11)


def test_bars_are_weighted_by_size_and_proportional(make_row):
    grid = lay_out([make_row("blocks/0/a/kernel", 0.1, bits=2.0), make_row("blocks/1/a/kernel", 0.1, bits=4.0)])
    small, large = numbers(bits_chart(grid), r'class="bar"[^>]* height="([\d.]+)"')
    assert large == pytest.approx(2 * small, abs=0.11)


def test_stronger_cells_are_larger_values(rows):
    svg = heat_map(lay_out(rows), lambda row: row.error, kind="cell", label="error", logarithmic=True)
    opacity = numbers(svg, r'fill-opacity="([\d.]+)"')
    assert max(opacity) == 1.0 and min(opacity) == 0.07


def test_shares_over_one_are_marked_and_missing_matrices_empty(rows):
    grid = lay_out(rows[:-1])
    svg = heat_map(grid, lambda row: row.error / row.rounding_error, kind="gain", label="share", logarithmic=False)
    assert svg.count('class="bad"') == 1 and svg.count('class="empty"') == 1


@pytest.mark.parametrize("low, high", [(-3.0, 1.0), (-0.31, -0.29), (-12.0, 3.0), (-1.5, -1.2)])
def test_ticks_are_few_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert len(ticks) <= 16 and all(10**low <= tick * (1 + 1e-9) and tick <= 10**high * (1 + 1e-9) for tick in ticks)


def test_a_lone_tiny_value_does_not_set_the_scale():
    assert faintest([1e-9, *range(1, 40)]) == 2 and faintest([3.0]) == 3.0
