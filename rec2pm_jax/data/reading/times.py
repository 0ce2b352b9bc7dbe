"""Times of events: the unit is stated or detected once per file, and dataset.json records which.

Numbers are seconds, milli-, micro- or nanoseconds since 1970. The size of most of them decides, because
the ranges of the years 1973 to 5138 do not overlap. Text is ISO 8601, or as --time_format says. What
seconds cannot hold becomes the `fraction` of canonical events. Nothing is guessed row by row: a row of
another unit, or with a zone among rows without, is a bad row.
"""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading import values as rules
from rec2pm_jax.data.reading.column_checks import split_numbers
from rec2pm_jax.data.reading.report import BatchCheck
from rec2pm_jax.data.reading.values import LATEST_TIMESTAMP, PER_SECOND, UNIT_NAMES
from rec2pm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TimeRules:
    """How times are written, as flags state it.

    Attributes:
      unit: s, ms, us, ns or iso; empty: detected from the first batch.
      zone: of times that state none, for example Europe/Berlin; empty: UTC.
      format: of text, for example "%m/%d/%Y %H:%M"; empty: ISO 8601.
    """

    unit: str = ""
    zone: str = ""
    format: str = ""

    @classmethod
    def of(cls, options: PrepareOptions) -> TimeRules:
        """Return the rules that the options state.

        Raises:
          UserError: unknown unit, zone or format.
        """
        unit, zone, time_format = options.time_unit, options.time_zone, options.time_format
        if unit and unit not in (*PER_SECOND, "iso"):
            raise UserError(f"--time_unit={unit} is unknown; choose one of s, ms, us, ns, iso.")
        if unit and time_format:
            raise UserError("Give --time_format or --time_unit, not both.")
        try:
            pl.Series([0]).cast(pl.Datetime("us")).dt.replace_time_zone(zone or "UTC")
        except pl.exceptions.PolarsError as error:
            raise UserError(f"--time_zone={zone} is unknown; write for example UTC.") from error
        if time_format:
            example = datetime.datetime(2024, 5, 31, 12, 30, 15, tzinfo=datetime.UTC)
            parsed = _parse_text(pl.Series([example.strftime(time_format)]), time_format)[0]
            if parsed is None or parsed.year != example.year:
                raise UserError(
                    f"--time_format={time_format} is no format of dates; write for example "
                    "%m/%d/%Y %H:%M."
                )
        return cls(unit or "", zone or "", time_format or "")


class TimeReader:
    """Reads the time column of one file, batch by batch."""

    def __init__(self, path: Path, stated: TimeRules):
        """Begin a file; `path` is for errors."""
        self._path = path
        self._stated = stated
        self._unit = stated.format or stated.unit
        self._zoned: bool | None = None  # whether times state their zone; None: not known yet

    def columns(self, values: pl.Series, check: BatchCheck) -> dict[str, pl.Series]:
        """Return `timestamp`, whole seconds, and `fraction`, nanoseconds after that; int64 [n] each.

        Args:
          values: a batch of the time column.
          check: marks the rows without a valid time. What they hold here means nothing.

        Raises:
          UserError: the type or the unit of the column cannot be told.
        """
        dtype = values.dtype
        if dtype == pl.Null:
            values, dtype = values.cast(pl.String), pl.String()
        if dtype == pl.Datetime or dtype == pl.Date:
            return self._read_datetimes(values, check)
        if not (dtype.is_integer() or dtype.is_float() or dtype == pl.String):
            raise UserError(
                f'{self._path}, column "{values.name}": times must be numbers, ISO text or datetimes, '
                f"not {dtype}."
            )
        if dtype == pl.String:
            comma = values.str.contains(rules.DECIMAL_COMMA)
            check.refuse(comma, values, "a time with a decimal comma; write a decimal point")
        if self._stated.format:
            return self._read_formatted(values, check)
        whole, part = split_numbers(values)
        if not self._unit and len(values):
            self._unit = self._detect_unit(values, whole)
        if self._unit == "iso":
            return self._read_iso(values, check)
        return self._read_numbers(values, whole, part, check)

    def notes(self) -> dict[str, str]:
        """Return the unit and zone in use and where they come from, for dataset.json."""
        how = "as stated" if self._stated.unit or self._stated.format else "detected"
        unit = UNIT_NAMES.get(self._unit, "ISO text" if self._unit == "iso" else self._unit)
        notes = {"time_unit": f"{unit} ({how})"} if self._unit else {}
        if self._zoned is False:
            given = f"--time_zone={self._stated.zone}" if self._stated.zone else "UTC"
            notes["time_zone"] = f"none in the input; taken as {given}"
        return notes

    def _detect_unit(self, values: pl.Series, whole: pl.Series) -> str:
        """Return the unit of a batch: "iso" for text without numbers, else by the median."""
        known = whole.drop_nulls().sort()
        if not len(known):
            return "iso" if values.dtype == pl.String else "s"
        if _look_like_dates(known):
            raise UserError(
                f'{self._path}, column "{values.name}": times such as {known[0]} look like dates. Add '
                "--time_format=%Y%m%d, or --time_unit=s if they are seconds."
            )
        # Not the largest, so that a single wild number is a bad row, and not the others.
        middle = int(known[len(known) // 2])
        return next(
            (u for u, scale in PER_SECOND.items() if middle <= LATEST_TIMESTAMP * scale), "ns"
        )

    def _read_numbers(
        self, values: pl.Series, whole: pl.Series, part: pl.Series, check: BatchCheck
    ) -> dict[str, pl.Series]:
        unit = self._unit or "s"  # no unit is known before the first row
        scale, name = PER_SECOND[unit], UNIT_NAMES[unit]
        check.refuse(whole.is_null(), values, f"a timestamp that is not a number of {name}")
        check.refuse(whole < 0, values, rules.NEGATIVE_TIME)
        other = "milliseconds" if unit == "s" else "another unit"
        check.refuse(
            whole > min(LATEST_TIMESTAMP * scale, 2**63 - 1),
            values,
            f"a timestamp beyond the year 5000 in {name} (is it a placeholder, or in {other}? see "
            "--time_unit; a file has one unit)",
        )
        if scale > 1:
            check.refuse(
                (whole > 0) & (whole <= LATEST_TIMESTAMP * scale // 1000),
                values,
                f"a timestamp before 1973 in {name}, the unit of the column (seconds among them? a "
                "file has one unit)",
            )
        fraction = whole % scale * (10**9 // scale) + part // scale
        return {"timestamp": whole // scale, "fraction": fraction}

    def _read_formatted(self, values: pl.Series, check: BatchCheck) -> dict[str, pl.Series]:
        times = _parse_text(values.cast(pl.String).str.strip_chars(), self._stated.format)
        what = f"a time that is not written as --time_format={self._stated.format}"
        check.refuse(times.is_null(), values, what)
        self._zoned = isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone is not None
        return self._from_datetimes(values, times, check)

    def _read_datetimes(self, values: pl.Series, check: BatchCheck) -> dict[str, pl.Series]:
        check.refuse(values.is_null(), values, "a missing timestamp")
        dtype = values.dtype
        self._unit = self._unit or ("dates" if dtype == pl.Date else "datetimes")
        self._zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
        times = values if dtype == pl.Datetime else values.cast(pl.Datetime("us"))
        nanoseconds = None
        if isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns":
            nanoseconds = values.to_physical() % 1000
        return self._from_datetimes(values, times, check, nanoseconds)

    def _read_iso(self, values: pl.Series, check: BatchCheck) -> dict[str, pl.Series]:
        parts = values.cast(pl.String).str.extract_groups(rules.ISO).struct.unnest()
        time = parts["time"].fill_null("00:00")
        time = time + pl.Series([":00"]).new_from_index(0, len(time)).set(
            time.str.len_bytes() > 5, ""
        )
        seconds = (parts["date"] + " " + time).str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False)
        check.refuse(parts["date"].is_null(), values, rules.NOT_A_TIME)
        check.refuse(seconds.is_null(), values, "no such date or time of day")
        zone = parts["zone"]
        zoned = bool(zone.is_not_null().any()) if self._zoned is None else self._zoned
        what = "a time without a zone among times with one" if zoned else "a time zone among none"
        check.refuse(zone.is_null() if zoned else zone.is_not_null(), values, what)
        self._zoned = zoned
        digits = parts["fraction"].fill_null("").str.pad_end(9, "0").str.head(9).cast(pl.Int64)
        times = seconds.cast(pl.Datetime("us")) + (digits // 1000).cast(pl.Duration("us"))
        if zoned:
            offset = (
                zone.str.replace_all(":", "").str.replace("(?i)^(z|utc)$", "+").str.pad_end(5, "0")
            )
            hours, minutes = (offset.str.slice(i, 2).cast(pl.Int64) for i in (1, 3))
            check.refuse((hours > 23) | (minutes > 59), values, "no such time zone")
            sign = offset.str.starts_with("-").cast(pl.Int64) * -2 + 1
            times = times - (sign * (hours * 60 + minutes) * 60_000_000).cast(pl.Duration("us"))
        return self._from_datetimes(values, times, check, digits % 1000)

    def _from_datetimes(
        self,
        values: pl.Series,
        times: pl.Series,
        check: BatchCheck,
        nanoseconds: pl.Series | None = None,
    ) -> dict[str, pl.Series]:
        """Return the columns of datetimes, in the zone of the flag if they state none."""
        zone = self._stated.zone
        if not self._zoned and zone:
            # An hour that occurs twice in autumn is taken as its first; one that is skipped is refused.
            local = times.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
            skipped = local.is_null() & times.is_not_null()
            check.refuse(skipped, values, f"no such time in {zone}")
            times = local
        micros = times.dt.epoch("us")
        check.refuse(micros < 0, values, rules.NEGATIVE_TIME)
        late = micros // 10**6 > LATEST_TIMESTAMP
        check.refuse(late, values, "a timestamp beyond the year 5000")
        fraction = micros % 10**6 * 1000
        if nanoseconds is not None:
            fraction = fraction + nanoseconds
        return {"timestamp": micros // 10**6, "fraction": fraction}


def _parse_text(values: pl.Series, time_format: str) -> pl.Series:
    """Return datetimes, null where a text is written otherwise."""
    try:
        return values.str.to_datetime(time_format, strict=False, time_unit="us")
    except pl.exceptions.PolarsError:  # the format is no format
        return pl.repeat(None, len(values), dtype=pl.Datetime("us"), eager=True)


def _look_like_dates(numbers: pl.Series) -> bool:
    """Return whether all numbers are dates such as 20240531."""
    low, high = int(numbers[0]), int(numbers[-1])
    if not 19_000_101 <= low <= high <= 21_001_231:
        return False
    days = numbers.cast(pl.String).str.to_date("%Y%m%d", strict=False)
    return not days.is_null().any()
