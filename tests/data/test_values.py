"""Single values and columns follow the same rules for ids, times and numbers."""

from __future__ import annotations

import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.reading.column_checks import to_ids, to_whole_numbers
from rec2pm_jax.data.reading.report import BatchCheck, LogReport
from rec2pm_jax.data.reading.times import TimeReader, TimeRules
from rec2pm_jax.data.reading.values import (
    Moment,
    ValueRules,
    parse_id,
    parse_time,
    parse_whole_number,
)
from rec2pm_jax.errors import UserError

NOON = 1_717_156_800  # 2024-05-31 12:00 UTC


def batch(values: pl.Series, path: str = "log.csv") -> BatchCheck:
    return BatchCheck(LogReport(), Path(path), pl.int_range(len(values), eager=True))


def single(parse, *args):
    try:
        return parse(*args)
    except UserError:
        return None


def column_time(value, unit="", zone="", time_format=""):
    values = pl.Series("t", [value])
    check = batch(values)
    found = TimeReader(Path("log.csv"), TimeRules(unit, zone, time_format)).columns(values, check)
    if not check.good[0]:
        return None
    return Moment(found["timestamp"][0], found["fraction"][0])


SECONDS = st.integers(-5, 10**11 + 5)
ZONES = st.sampled_from(["", "Z", "z", " UTC", "+00", "+02", "-0330", "+05:30", "+99", "+24:00"])
DATES = st.datetimes(datetime.datetime(1960, 1, 1), datetime.datetime(2600, 1, 1))
ISO_TEXT = st.builds(
    lambda when, separator, kind, zone, fraction: (
        when.strftime(f"%Y-%m-%d{separator}{kind}") + fraction * ("S" in kind) + zone
    ),
    DATES,
    st.sampled_from(["T", " "]),
    st.sampled_from(["%H:%M", "%H:%M:%S"]),
    ZONES,
    st.sampled_from(["", ".5", ".123456789", ",25", ".1234567891234"]),
)
NUMBER_TEXT = st.builds(
    lambda whole, rest: f"{whole}{rest}",
    SECONDS,
    st.sampled_from(["", ".", ".0", ".25", ".999999999", "e0", ",5", " ", "x", ".2.2"]),
)


@settings(max_examples=300, deadline=None)
@given(ISO_TEXT | NUMBER_TEXT | SECONDS | st.sampled_from(["", "nan", "soon", "2024-02-30", None]))
def test_a_time_alone_is_the_time_of_a_column(value):
    try:
        expected = column_time(value)
    except UserError as error:  # a column of such numbers is refused as a whole
        assert "look like dates" in str(error)
        return
    if isinstance(value, int) or (
        isinstance(value, str) and value[:1].isdigit() and "-" not in value
    ):
        expected = column_time(value, "s")
    assert single(parse_time, value) == expected


@pytest.mark.parametrize(
    ("zone", "seconds"), [("+05:59", -21_540), ("-00:59", 3540), ("+05:60", None), ("+24:00", None)]
)
def test_zones_have_at_most_59_minutes(zone, seconds):
    expected = None if seconds is None else Moment(NOON + seconds, 0)
    value = f"2024-05-31T12:00:00{zone}"
    assert single(parse_time, value) == column_time(value) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**62) | st.floats(0, 1e19) | st.builds(str, st.integers(0, 2**65)),
    st.sampled_from(["s", "ms", "us", "ns"]),
)
def test_units_of_single_times_and_columns(value, unit):
    alone, column = single(parse_time, value, unit), column_time(value, unit)
    # Only a column tells a unit: small numbers of milliseconds are refused there.
    if column is not None or alone is None or unit == "s":
        assert alone == column


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-05-31 12:00:00+00", Moment(NOON, 0)),  # as Postgres writes it
        ("2024-05-31T14:00+02", Moment(NOON, 0)),
        ("2024-05-31T12:00:00.1234567Z", Moment(NOON, 123_456_700)),
        (f"{NOON}.25", Moment(NOON, 250_000_000)),
        (NOON + 0.25, Moment(NOON, 250_000_000)),
        ("1.7171568e9", Moment(NOON, 0)),
        (datetime.datetime(2024, 5, 31, 12, tzinfo=datetime.UTC), Moment(NOON, 0)),
    ],
)
def test_ways_to_write_a_time(value, expected):
    assert parse_time(value) == expected
    assert column_time(value) == expected


@pytest.mark.parametrize(
    ("text", "time_format"),
    [("5/31/2024 12:00", "%m/%d/%Y %H:%M"), ("31.05.2024 14:00 +0200", "%d.%m.%Y %H:%M %z")],
)
def test_formats(text, time_format):
    assert parse_time(text, time_format=time_format) == Moment(NOON, 0)
    assert column_time(text, time_format=time_format) == Moment(NOON, 0)
    assert single(parse_time, "2024-05-31", "s", "", time_format) is None
    assert column_time("2024-05-31", time_format=time_format) is None
    assert parse_time("20240531", time_format="%Y%m%d") == Moment(NOON - 43_200, 0)
    assert column_time(20240531, time_format="%Y%m%d") == Moment(NOON - 43_200, 0)


@pytest.mark.parametrize("text", ["2024-03-31T02:30:00", "2024-10-27T02:30:00", "2024-07-01"])
def test_zones_of_times_that_state_none(text):
    expected = column_time(text, zone="Europe/Berlin")
    assert single(parse_time, text, "s", "Europe/Berlin") == expected
    assert (expected is None) == ("03-31" in text)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-3, 2**64 - 1)
    | st.floats()
    | st.sampled_from(["", "7", "7.0", "07.00", "-7.0", "x", "1e3", "ü", None, " 7"]),
    st.sampled_from(["text", "int"]),
)
def test_an_id_alone_is_the_id_of_a_column(value, id_type):
    unsigned = isinstance(value, int) and value >= 2**63
    values = pl.Series("user", [value], dtype=pl.UInt64 if unsigned else None, strict=False)
    check = batch(values)
    found = to_ids(values, check, id_type)
    assert single(parse_id, value, id_type) == (found[0] if check.good[0] else None)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-(2**63), 2**63 - 1) | st.floats() | st.sampled_from(["1.0", "1.5", "-2", "", "a"])
)
def test_a_whole_number_alone_is_that_of_a_column(value):
    values = pl.Series("order", [value])
    check = batch(values)
    found = to_whole_numbers(values, check)
    assert single(parse_whole_number, value) == (found[0] if check.good[0] else None)


def test_the_rules_of_a_dataset():
    reading = {"id_type": "int", "time_zone": "Europe/Berlin", "time_format": "%d.%m.%Y %H:%M"}
    rules = ValueRules.of({"reading": reading})
    assert rules.read_id("7.0") == rules.read_id(7) == "7"
    assert rules.read_time("31.05.2024 14:00") == rules.read_time(NOON) == Moment(NOON, 0)
    with pytest.raises(UserError, match="not written as"):
        rules.read_time("2024-05-31")
    assert ValueRules.of({}) == ValueRules()  # of version 0.1, or of another source


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, b"x", float("nan"), float("inf"), 1.5, -1])
def test_what_is_no_id(value):
    with pytest.raises(UserError, match="id|whole number"):
        parse_id(value)
