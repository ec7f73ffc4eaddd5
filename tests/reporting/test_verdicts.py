from compressjax.reporting.verdicts import disappointing, is_plain, mean_errors, worst


def test_what_fell_back_or_lost_is_disappointing_and_plain_rounding_is_not(summary, make_row):
    assert [row.path for row in disappointing(summary)] == ["blocks/1/attn/q/kernel", "blocks/2/mlp/up/kernel"]
    assert is_plain(make_row("a", 0.04)) and not is_plain(make_row("a", 0.04, fallback=True))
    assert not is_plain(make_row("a", 0.03))


def test_worst_and_means(rows):
    assert [row.error for row in worst(rows, 2)] == [0.05, 0.04]
    ours, rounding = mean_errors(rows)
    assert abs(ours - sum(row.error for row in rows) / 6) < 1e-12 and abs(rounding - 0.04) < 1e-12
    assert mean_errors(()) is None
