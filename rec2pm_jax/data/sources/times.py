"""Times of events: the unit is stated or detected once per file, and dataset.json says which.

Numbers are seconds, milli-, micro- or nanoseconds since 1970 by their size: the ranges of the years
1973 to 5138 do not overlap. Text is ISO 8601. What seconds cannot hold becomes the `order` of
canonical events. Nothing is guessed row by row: a column that mixes units, or times with and without
a zone, is refused.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from rec2pm_jax.data.sources.tables import refuse
from rec2pm_jax.errors import UserError

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_LIMIT = 10**11  # seconds; a larger number is of a smaller unit
_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})(?:[T ](?<time>\d{2}:\d{2}(?::\d{2})?)(?:[.,](?<fraction>\d+))?)?"
    r"\s*(?<zone>Z|z|UTC|[+-]\d{2}:?\d{2})?$"
)


class Times:
    """Reads the time column of one file, batch by batch."""

    def __init__(self, path: Path, unit: str = "", zone: str = ""):
        """Args:
          path: named in errors.
          unit: s, ms, us, ns or iso; empty: detected from the first batch.
          zone: of times that state none, e.g. Europe/Berlin; empty: UTC.

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
        self._zoned: bool | None = None

    def columns(self, values: pl.Series, first_row: int) -> dict[str, pl.Series]:
        """`timestamp` and, where the unit is finer than a second, `order`; int64 each.

        Raises:
          UserError: names the first row (counted from `first_row`) that has no such time.
        """
        if values.dtype == pl.Datetime or values.dtype == pl.Date:
            return self._datetimes(values, first_row)
        if not (values.dtype.is_integer() or values.dtype.is_float() or values.dtype == pl.String):
            raise UserError(
                f'{self._path}, column "{values.name}": times must be numbers, ISO text or datetimes, '
                f"not {values.dtype}."
            )
        numbers = values.cast(pl.Int64, strict=False)
        if values.dtype.is_float() or values.dtype == pl.String:
            floats = values.cast(pl.Float64, strict=False)
            whole = (floats == floats.floor()) & (floats.abs() < 2**53)
            numbers = numbers.fill_null(floats.cast(pl.Int64, strict=False)).set(
                ~whole & numbers.is_null(), None
            )
            if values.dtype.is_float():
                numbers = numbers.set((~whole).fill_null(True), None)
        if not self._unit and len(values):
            self._detect(values, numbers)
        if self._unit == "iso":
            return self._iso(values, first_row)
        return self._numbers(values, numbers, first_row)

    def notes(self) -> dict[str, str]:
        """What was read and how it was taken, for dataset.json."""
        how = "as stated" if self._stated else "detected"
        unit = _NAMES.get(self._unit, "ISO text" if self._unit == "iso" else self._unit)
        notes = {"time_unit": f"{unit} ({how})"} if self._unit else {}
        if self._zoned is False:
            given = f"--time_zone={self._zone}" if self._zone else "UTC"
            notes["time_zone"] = f"none in the input; taken as {given}"
        return notes

    def _detect(self, values: pl.Series, numbers: pl.Series) -> None:
        known = numbers.drop_nulls()
        if not len(known) and values.dtype == pl.String:
            self._unit = "iso"
            return
        largest = int(known.max() or 0) if len(known) else 0
        for unit, scale in _PER_SECOND.items():
            if largest <= _LIMIT * scale or unit == "ns":
                self._unit = unit
                return

    def _numbers(self, values: pl.Series, numbers: pl.Series, first_row: int):
        scale = _PER_SECOND[self._unit]
        name = _NAMES[self._unit]
        where = (self._path, first_row)
        refuse(
            numbers.is_null(), values, *where, f"a timestamp that is not a whole number of {name}"
        )
        refuse(numbers < 0, values, *where, "a negative timestamp")
        other = "milliseconds" if self._unit == "s" else "another unit"
        refuse(
            numbers > min(_LIMIT * scale, 2**63 - 1),
            values,
            *where,
            f"a timestamp beyond the year 5000 in {name} (are these {other}? see --time_unit; "
            "a file has one unit)",
        )
        if scale > 1:
            refuse(
                (numbers > 0) & (numbers <= _LIMIT * scale // 1000),
                values,
                *where,
                f"a timestamp before 1973 in {name}, the unit of the column (seconds among them? a "
                "file has one unit)",
            )
            return {"timestamp": numbers // scale, "order": numbers % scale}
        return {"timestamp": numbers}

    def _datetimes(self, values: pl.Series, first_row: int):
        refuse(values.is_null(), values, self._path, first_row, "a missing timestamp")
        self._unit = self._unit or ("dates" if values.dtype == pl.Date else "datetimes")
        zoned = values.dtype == pl.Datetime and values.dtype.time_zone is not None
        times = values if zoned else values.cast(pl.Datetime("us"))
        self._zoned = zoned
        return self._from_microseconds(values, times, zoned, first_row)

    def _iso(self, values: pl.Series, first_row: int):
        parts = values.cast(pl.String).str.strip_chars().str.extract_groups(_ISO).struct.unnest()
        time = parts["time"].fill_null("00:00")
        time = time + pl.Series([":00"]).new_from_index(0, len(time)).set(
            time.str.len_bytes() > 5, ""
        )
        seconds = (parts["date"] + " " + time).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
        refuse(
            seconds.is_null(),
            values,
            self._path,
            first_row,
            "a time that is neither a number nor ISO 8601 text such as 2024-05-31T12:00:00Z",
        )
        zone = parts["zone"]
        zoned = bool(zone.is_not_null().any()) if self._zoned is None else self._zoned
        what = "a time without a zone among times with one" if zoned else "a time zone among none"
        refuse(zone.is_null() if zoned else zone.is_not_null(), values, self._path, first_row, what)
        self._zoned = zoned
        fraction = parts["fraction"].fill_null("").str.pad_end(6, "0").str.head(6).cast(pl.Int64)
        times = seconds.cast(pl.Datetime("us")) + fraction.cast(pl.Duration("us"))
        if zoned:
            digits = zone.str.replace_all(":", "").str.replace("(?i)^(z|utc)$", "+0000")
            minutes = digits.str.slice(1, 2).cast(pl.Int64) * 60 + digits.str.slice(3, 2).cast(
                pl.Int64
            )
            sign = digits.str.starts_with("-").cast(pl.Int64) * -2 + 1
            times = times - (sign * minutes * 60_000_000).cast(pl.Duration("us"))
        return self._from_microseconds(values, times, zoned, first_row)

    def _from_microseconds(self, values, times: pl.Series, zoned: bool, first_row: int):
        if not zoned and self._zone:
            # The hour that clocks repeat in autumn is taken as its first; the one they skip is refused.
            times = times.dt.replace_time_zone(
                self._zone, ambiguous="earliest", non_existent="null"
            )
            refuse(times.is_null(), values, self._path, first_row, f"no such time in {self._zone}")
        micros = times.dt.epoch("us")
        refuse(micros < 0, values, self._path, first_row, "a negative timestamp (before 1970)")
        return {"timestamp": micros // 10**6, "order": micros % 10**6}
