"""Times of events: the unit is stated or detected once per file, and dataset.json records which.

Numbers are seconds, milli-, micro- or nanoseconds since 1970. Their size decides, because the ranges of
the years 1973 to 5138 do not overlap. Text is ISO 8601. What seconds cannot hold becomes the `order` of
canonical events. Nothing is guessed row by row: a column that mixes units, or times with and without a
zone, is refused.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.reading.column_checks import refuse_rows
from rec2pm_jax.data.schema import LATEST_TIMESTAMP
from rec2pm_jax.errors import UserError

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})(?:[T ](?<time>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?<fraction>\d+))?)?"
    r"\s*(?<zone>Z|z|UTC|[+-]\d{2}:?\d{2})?$"
)


class TimeReader:
    """Reads the time column of one file, batch by batch."""

    def __init__(self, path: Path, unit: str = "", zone: str = ""):
        """Choose how to read a file.

        Args:
          path: the file, for errors.
          unit: s, ms, us, ns or iso; empty: detected from the first batch.
          zone: of times that state none, for example Europe/Berlin; empty: UTC.

        Raises:
          UserError: unknown unit or zone.
        """
        if unit and unit not in (*_PER_SECOND, "iso"):
            raise UserError(f"--time_unit={unit} is unknown; choose one of s, ms, us, ns, iso.")
        try:
            pl.Series([0]).cast(pl.Datetime("us")).dt.replace_time_zone(zone or "UTC")
        except pl.exceptions.PolarsError as error:
            raise UserError(f"--time_zone={zone} is unknown; write for example UTC.") from error
        self._path = path
        self._unit = unit
        self._stated = bool(unit)
        self._zone = zone
        self._zoned: bool | None = None  # whether times state their zone; None: not known yet

    def columns(self, values: pl.Series, first_row: int) -> dict[str, pl.Series]:
        """Return `timestamp` and, if the unit is finer than a second, `order`; int64 [n] each.

        Args:
          values: a batch of the time column.
          first_row: the number of its first row, for errors.

        Raises:
          UserError: names the first row without a valid time.
        """
        if values.dtype == pl.Datetime or values.dtype == pl.Date:
            return self._read_datetimes(values, first_row)
        if not (values.dtype.is_integer() or values.dtype.is_float() or values.dtype == pl.String):
            raise UserError(
                f'{self._path}, column "{values.name}": times must be numbers, ISO text or datetimes, '
                f"not {values.dtype}."
            )
        numbers = _to_whole_numbers(values)
        if not self._unit and len(values):
            self._unit = _detect_unit(values, numbers)
        if self._unit == "iso":
            return self._read_iso(values, first_row)
        return self._read_numbers(values, numbers, first_row)

    def notes(self) -> dict[str, str]:
        """Return the unit and zone in use and where they come from, for dataset.json."""
        how = "as stated" if self._stated else "detected"
        unit = _NAMES.get(self._unit, "ISO text" if self._unit == "iso" else self._unit)
        notes = {"time_unit": f"{unit} ({how})"} if self._unit else {}
        if self._zoned is False:
            given = f"--time_zone={self._zone}" if self._zone else "UTC"
            notes["time_zone"] = f"none in the input; taken as {given}"
        return notes

    def _refuse(self, bad: pl.Series, values: pl.Series, first_row: int, what: str) -> None:
        refuse_rows(bad, values, self._path, first_row, what)

    def _read_numbers(
        self, values: pl.Series, numbers: pl.Series, first_row: int
    ) -> dict[str, pl.Series]:
        scale = _PER_SECOND[self._unit]
        name = _NAMES[self._unit]
        fractional = f"a timestamp that is not a whole number of {name}"
        self._refuse(numbers.is_null(), values, first_row, fractional)
        self._refuse(numbers < 0, values, first_row, "a negative timestamp")
        other = "milliseconds" if self._unit == "s" else "another unit"
        self._refuse(
            numbers > min(LATEST_TIMESTAMP * scale, 2**63 - 1),
            values,
            first_row,
            f"a timestamp beyond the year 5000 in {name} (are these {other}? see --time_unit; "
            "a file has one unit)",
        )
        if scale == 1:
            return {"timestamp": numbers}
        self._refuse(
            (numbers > 0) & (numbers <= LATEST_TIMESTAMP * scale // 1000),
            values,
            first_row,
            f"a timestamp before 1973 in {name}, the unit of the column (seconds among them? a "
            "file has one unit)",
        )
        return {"timestamp": numbers // scale, "order": numbers % scale}

    def _read_datetimes(self, values: pl.Series, first_row: int) -> dict[str, pl.Series]:
        self._refuse(values.is_null(), values, first_row, "a missing timestamp")
        self._unit = self._unit or ("dates" if values.dtype == pl.Date else "datetimes")
        dtype = values.dtype
        self._zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
        times = values if self._zoned else values.cast(pl.Datetime("us"))
        return self._from_datetimes(values, times, first_row)

    def _read_iso(self, values: pl.Series, first_row: int) -> dict[str, pl.Series]:
        parts = values.cast(pl.String).str.strip_chars().str.extract_groups(_ISO).struct.unnest()
        time = parts["time"].fill_null("00:00")
        time = time + pl.Series([":00"]).new_from_index(0, len(time)).set(
            time.str.len_bytes() > 5, ""
        )
        seconds = (parts["date"] + " " + time).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
        self._refuse(
            seconds.is_null(),
            values,
            first_row,
            "a time that is neither a number nor ISO 8601 text such as 2024-05-31T12:00:00Z",
        )
        zone = parts["zone"]
        zoned = bool(zone.is_not_null().any()) if self._zoned is None else self._zoned
        what = "a time without a zone among times with one" if zoned else "a time zone among none"
        self._refuse(zone.is_null() if zoned else zone.is_not_null(), values, first_row, what)
        self._zoned = zoned
        fraction = parts["fraction"].fill_null("").str.pad_end(6, "0").str.head(6).cast(pl.Int64)
        times = seconds.cast(pl.Datetime("us")) + fraction.cast(pl.Duration("us"))
        if zoned:
            digits = zone.str.replace_all(":", "").str.replace("(?i)^(z|utc)$", "+0000")
            hours, minutes = (digits.str.slice(i, 2).cast(pl.Int64) for i in (1, 3))
            sign = digits.str.starts_with("-").cast(pl.Int64) * -2 + 1
            offset = sign * (hours * 60 + minutes) * 60_000_000
            times = times - offset.cast(pl.Duration("us"))
        return self._from_datetimes(values, times, first_row)

    def _from_datetimes(
        self, values: pl.Series, times: pl.Series, first_row: int
    ) -> dict[str, pl.Series]:
        """Return the columns of datetimes, in the zone of the flag if they state none."""
        if not self._zoned and self._zone:
            # An hour that occurs twice in autumn is taken as its first; one that is skipped is refused.
            times = times.dt.replace_time_zone(
                self._zone, ambiguous="earliest", non_existent="null"
            )
            self._refuse(times.is_null(), values, first_row, f"no such time in {self._zone}")
        micros = times.dt.epoch("us")
        self._refuse(micros < 0, values, first_row, "a negative timestamp (before 1970)")
        return {"timestamp": micros // 10**6, "order": micros % 10**6}


def _to_whole_numbers(values: pl.Series) -> pl.Series:
    """Return int64 [n], null where a value is no whole number."""
    numbers = values.cast(pl.Int64, strict=False)
    if values.dtype.is_float() or values.dtype == pl.String:
        floats = values.cast(pl.Float64, strict=False)
        whole = (floats == floats.floor()) & (floats.abs() < 2**53)
        numbers = numbers.fill_null(floats.cast(pl.Int64, strict=False)).set(
            ~whole & numbers.is_null(), None
        )
        if values.dtype.is_float():
            numbers = numbers.set((~whole).fill_null(True), None)
    return numbers


def _detect_unit(values: pl.Series, numbers: pl.Series) -> str:
    """Return the unit of a batch: "iso" for text without numbers, else by the largest number."""
    known = numbers.drop_nulls()
    if not len(known) and values.dtype == pl.String:
        return "iso"
    largest = int(numbers.max() or 0)  # type: ignore[arg-type]
    return next(
        (u for u, scale in _PER_SECOND.items() if largest <= LATEST_TIMESTAMP * scale), "ns"
    )
