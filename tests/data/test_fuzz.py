"""Damaged and strange inputs give a whole dataset or one UserError."""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import io
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, prepare
from rec2pm_jax.data.sources import SOURCES
from rec2pm_jax.errors import UserError
from tests.helpers import raw_files
from tests.helpers.damage import damages

FAST = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
SLOW = settings(FAST, max_examples=300)
SUFFIXES = ("csv", "tsv", "jsonl", "parquet", "csv.gz")


def check(source: str, directory: Path, path: Path, **options) -> bool:
    """Prepare; return whether it succeeded. Fail unless there is a whole dataset or a UserError."""
    out = directory / "out"
    try:
        prepare(PrepareOptions(source, str(out), input=str(path), progress=False, **options))
    except UserError as error:
        assert str(error)
        assert not out.exists() and not (directory / "out.preparing").exists()
        return False
    dataset = open_dataset(out)
    assert dataset.histories.lengths.sum() == dataset.info["events"] > 0  # checks the hash, too
    assert "" not in dataset.items.raw_ids[1:] and "" not in dataset.histories.users
    return True


def written(frame: pl.DataFrame, suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == "parquet":
        frame.write_parquet(buffer)
    elif suffix == "jsonl":
        frame.write_ndjson(buffer)
    else:
        frame.write_csv(buffer, separator="\t" if suffix == "tsv" else ",")
    return gzip.compress(buffer.getvalue()) if suffix.endswith(".gz") else buffer.getvalue()


LOG = pl.DataFrame(
    {
        "user": ["u1", "ü2", "u1", "坂本"] * 5,
        "item": [f"i{n % 7}" for n in range(20)],
        "timestamp": [1_600_000_000 + 60 * n for n in range(20)],
        "kind": ["a", "b"] * 10,
    }
)


def damaged_log(suffix, damage, type_column):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"log.{suffix}"
        path.write_bytes(damage(written(LOG, suffix)))
        check("interactions", Path(name), path, type_column=type_column)


ANY_DAMAGE = {
    "suffix": st.sampled_from(SUFFIXES),
    "damage": damages(),
    "type_column": st.sampled_from(["", "kind"]),
}
test_damaged_logs = FAST(given(**ANY_DAMAGE)(damaged_log))
test_damaged_logs_at_length = pytest.mark.slow(SLOW(given(**ANY_DAMAGE)(damaged_log)))


@FAST
@given(
    suffix=st.sampled_from(SUFFIXES),
    head=st.sampled_from(
        [b"", b"user,item,timestamp\n", b"PAR1", b'{"user":1,"item":2,"timestamp":3}\n']
    ),
    data=st.binary(max_size=80),
)
def test_random_bytes(suffix, head, data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"log.{suffix}"
        path.write_bytes(head + data)
        check("interactions", Path(name), path)


MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5)
COLUMNS = [
    st.sampled_from([None, 0, 1, 7, 2**40, 2**62]),
    st.sampled_from([1_600_000_000, 1_600_000_000_123, -1]),
    st.sampled_from([None, 0.0, 1.5, -2.0, float("nan"), float("inf"), 1e300]),
    st.sampled_from([None, "", "a", "7", "ü", "\U0001f600", "\x00", "a\nb", '"q"', "x" * 300]),
    st.sampled_from(["2024-01-01", "2024-01-01T10:00:00Z", "2024-06-01 10:00:00+02:00"]),
    st.sampled_from(["2024-03-31T02:30:00", "2024-02-30", "1600000000", "nan", "soon"]),
    st.sampled_from([None, MOMENT, MOMENT.replace(year=1950)]),
    st.sampled_from([None, MOMENT.date()]),
    st.sampled_from([None, MOMENT.time()]),
    st.sampled_from([None, datetime.timedelta(seconds=5)]),
    st.sampled_from([None, True, False]),
    st.sampled_from([None, [1], [2, 3], []]),
    st.sampled_from([None, {"a": 1}]),
    st.sampled_from([b"ab", b"\xff"]),
]


@st.composite
def strange_logs(draw):
    rows = draw(st.integers(1, 5))
    good = {"user": COLUMNS[3], "item": COLUMNS[0], "timestamp": COLUMNS[1], "kind": COLUMNS[3]}
    columns = {
        name: draw(st.lists(draw(st.sampled_from([usual, *COLUMNS])), min_size=rows, max_size=rows))
        for name, usual in good.items()
    }
    return columns


def strange_log(columns, suffix, time_unit, time_zone, type_column):
    rows = range(len(columns["user"]))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / f"log.{suffix}"
        if suffix == "jsonl":  # mixed types in one column, too
            lines = [{key: values[i] for key, values in columns.items()} for i in rows]
            path.write_text("\n".join(json.dumps(line, default=str) for line in lines))
        else:
            frame = pl.DataFrame(columns, strict=False)
            if suffix == "csv":
                unwritable = (pl.Binary, pl.Duration)
                types = frame.schema.items()
                frame = frame.drop(n for n, t in types if t.is_nested() or t in unwritable)
            path.write_bytes(written(frame, suffix))
        check(
            "interactions",
            Path(name),
            path,
            time_unit=time_unit,
            time_zone=time_zone,
            type_column=type_column,
        )


STRANGE = {
    "columns": strange_logs(),
    "suffix": st.sampled_from(["csv", "jsonl", "parquet"]),
    "time_unit": st.sampled_from(["", "", "s", "ns", "iso"]),
    "time_zone": st.sampled_from(["", "Europe/Berlin"]),
    "type_column": st.sampled_from(["", "kind"]),
}
test_strange_columns = FAST(given(**STRANGE)(strange_log))
test_strange_columns_at_length = pytest.mark.slow(SLOW(given(**STRANGE)(strange_log)))


def test_every_source_of_files_has_a_layout_that_is_read(tmp_path):
    generated = {"synthetic", "synthetic_log", "interactions"}
    assert set(raw_files.LAYOUTS) == set(SOURCES) - generated
    for name, make in raw_files.LAYOUTS.items():
        assert check(name, tmp_path / name, make(tmp_path / name / "raw")), name


def retyped(path: Path, column: int, change: int) -> None:
    """Rewrite a Parquet file with one column of another type, or with nulls."""
    frame = pl.read_parquet(path)
    name = frame.columns[column % frame.width]
    values = pl.col(name)
    frame.with_columns(
        [
            values.cast(pl.String, strict=False),
            values.cast(pl.Float64, strict=False),
            pl.lit(None),
            pl.struct(values),
            pl.concat_list(values),
            pl.when(pl.int_range(pl.len()) > 0).then(values),
            values.filter(pl.lit(False)).first(),
        ][change].alias(name)
    ).write_parquet(path)


def damaged_layout(source, file, damage, column, change):
    with tempfile.TemporaryDirectory() as name:
        path = raw_files.LAYOUTS[source](Path(name) / "raw")
        files = [p for p in sorted((Path(name) / "raw").rglob("*")) if p.is_file()]
        target = files[file % len(files)]
        if target.suffix == ".parquet" and change is not None:
            try:
                retyped(target, column, change)
            except pl.exceptions.PolarsError:  # there is no such cast
                return
        else:
            target.write_bytes(damage(target.read_bytes()))
        check(source, Path(name), path)


LAYOUT_DAMAGE = {
    "source": st.sampled_from(sorted(raw_files.LAYOUTS)),
    "file": st.integers(0, 7),
    "damage": damages(),
    "column": st.integers(0, 30),
    "change": st.none() | st.integers(0, 6),
}
test_damaged_layouts = FAST(given(**LAYOUT_DAMAGE)(damaged_layout))
test_damaged_layouts_at_length = pytest.mark.slow(SLOW(given(**LAYOUT_DAMAGE)(damaged_layout)))


@FAST
@given(file=st.integers(0, 20), damage=damages(), deltas=st.booleans())
def test_damaged_datasets(tmp_path_factory, file, damage, deltas):
    """A prepared dataset reads as it was written, or not at all."""
    directory = tmp_path_factory.mktemp("damaged")
    path = directory / "log.parquet"
    LOG.write_parquet(path)
    options = PrepareOptions(
        "interactions", str(directory / "out"), input=str(path), progress=False, type_column="kind"
    )
    prepare(options)
    if deltas:
        append(dataclasses.replace(options, force=True))
    whole = open_dataset(directory / "out")
    expected = whole.histories
    files = [p for p in sorted((directory / "out").rglob("*")) if p.is_file()]
    target = files[file % len(files)]
    target.write_bytes(damage(target.read_bytes()))
    try:
        dataset = open_dataset(directory / "out")
        found = dataset.histories
    except UserError:
        return
    if target.suffix != ".json":  # whose other facts no hash covers
        assert list(found.users) == list(expected.users)
        assert dataset.items.raw_ids == whole.items.raw_ids
        for name in ("offsets", "ids", "times", "types"):
            assert (getattr(found, name) == getattr(expected, name)).all(), name


def pages(data: bytes) -> tuple[int, int]:
    """Return where the pages of a Parquet file begin and end."""
    return 4, len(data) - 8 - int.from_bytes(data[-8:-4], "little")


@pytest.mark.parametrize("part", ["header", "content"])
def test_a_corrupt_page_is_named_and_leaves_nothing(tmp_path, part):
    """One file of many is damaged inside of its data: the error says which."""
    log = tmp_path / "log"
    log.mkdir()
    frame = pl.DataFrame({"user": ["u"] * 5000, "item": range(5000), "timestamp": range(5000)})
    for number in range(3):
        frame.write_parquet(log / f"{number}.parquet", compression="zstd")
    data = bytearray((log / "1.parquet").read_bytes())
    first, last = pages(data)
    if part == "header":
        data[first : first + 36] = bytes(36)
    else:
        for place in range((first + last) // 2, (first + last) // 2 + 20):
            data[place] ^= 0xFF
    (log / "1.parquet").write_bytes(data)
    with pytest.raises(UserError, match=r"1\.parquet cannot be read"):
        prepare(
            PrepareOptions("interactions", str(tmp_path / "out"), input=str(log), progress=False)
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


def test_the_damaged_shard_of_a_source_is_named(tmp_path):
    path = raw_files.merrec(tmp_path / "raw")
    shard = path / "20231001" / "000000000000.parquet"
    data = bytearray(shard.read_bytes())
    first, last = pages(data)
    data[first:last] = bytes(last - first)
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"20231001/000000000000\.parquet cannot be read"):
        prepare(PrepareOptions("merrec", str(tmp_path / "out"), input=str(path), progress=False))
