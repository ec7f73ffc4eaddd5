import numpy as np
import pytest

from compressjax.data.flights import FIELDS, flights_file, flights_of_rows, load_flights, split_by_days


def row(**changes):
    base = dict(year="2013", month="1", day="2", carrier="UA", flight="7", tailnum="N1", origin="EWR", dest="IAH")
    return {**base, "hour": "5", "minute": "15", "distance": "1400", "arr_delay": "3", **changes}


def test_rows_become_ids_and_labels():
    table = flights_of_rows(
        [
            row(),
            row(carrier="AA", arr_delay="16", distance="400"),
            row(arr_delay="NA"),
            row(arr_delay="15", month="2", minute="45"),
        ]
    )
    np.testing.assert_array_equal(table.late, [0, 1, 0])
    np.testing.assert_array_equal(table.ids[:, FIELDS.index("carrier")], [1, 0, 1])
    np.testing.assert_array_equal(table.day, [1, 1, 32])
    np.testing.assert_allclose(table.numeric, [[1, 0], [0, 0], [1, 1]])
    assert table.sizes == (2, 1, 1, 1, 1, 1, 2, 1)
    with pytest.raises(ValueError, match="no row has an arr_delay"):
        flights_of_rows([row(arr_delay="")])


def test_no_day_is_in_two_parts():
    days = [row(month=str(1 + d // 28), day=str(1 + d % 28)) for d in range(300)]
    parts = split_by_days(flights_of_rows(days))
    seen = [set(part.day.tolist()) for part in parts.values()]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 300
    assert len(parts["train"].day) > 6 * len(parts["test"].day) > 0


@pytest.mark.slow
def test_the_packaged_table():
    try:
        flights_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    table = load_flights()
    assert len(table.late) == 327_346 and table.late.mean() == pytest.approx(0.237, abs=5e-4)
    assert dict(zip(FIELDS, table.sizes, strict=True))["carrier"] == 16
    assert all(table.ids[:, i].max() == size - 1 for i, size in enumerate(table.sizes))
