"""Real logs: several units of time, mixed ids, empty files, one user with most events."""

from __future__ import annotations

import datetime
import os
import subprocess
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, prepare
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_log, random_log

START = 1_709_251_200  # 2024-03-01, of which the zones below have no change of clocks


def prepare_files(directory: Path, **options) -> dict:
    return prepare(
        PrepareOptions(
            "interactions",
            str(directory / "data"),
            input=str(directory / "log"),
            progress=False,
            **options,
        )
    )[0]


def at(seconds: list[int], zone: datetime.tzinfo | None = datetime.UTC) -> list[datetime.datetime]:
    times = [datetime.datetime.fromtimestamp(s, zone or datetime.UTC) for s in seconds]
    return times if zone else [t.replace(tzinfo=None) for t in times]


SECONDS = [START + 61 * n for n in range(6)]
EAST = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
KINDS = {
    "seconds": (SECONDS, {}, "seconds (detected)"),
    "floats": ([float(s) for s in SECONDS], {}, "seconds (detected)"),
    "text": ([str(s) for s in SECONDS], {}, "seconds (detected)"),
    "milliseconds": ([s * 10**3 for s in SECONDS], {}, "milliseconds (detected)"),
    "microseconds": ([s * 10**6 for s in SECONDS], {}, "microseconds (detected)"),
    "nanoseconds": ([s * 10**9 for s in SECONDS], {}, "nanoseconds (detected)"),
    "stated": ([s * 10**3 for s in SECONDS], {"time_unit": "ms"}, "milliseconds (as stated)"),
    "iso": ([t.isoformat() for t in at(SECONDS)], {}, "ISO text (detected)"),
    "east": ([t.isoformat() for t in at(SECONDS, EAST)], {}, "ISO text (detected)"),
    "no zone": ([t.isoformat(" ") for t in at(SECONDS, None)], {}, "ISO text (detected)"),
    "local": (
        [t.isoformat()[:19] for t in at(SECONDS, EAST)],
        {"time_zone": "Asia/Kolkata"},
        "ISO text (detected)",
    ),
    "datetimes": (at(SECONDS), {}, "datetimes (detected)"),
    "naive datetimes": (at(SECONDS, None), {}, "datetimes (detected)"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_write_a_time_give_one_dataset_that_names_the_way(tmp_path, kind):
    times, options, said = KINDS[kind]
    log = pl.DataFrame({"user": ["u", "v"] * 3, "item": list("abcabc")})
    expected = prepare_log(log.with_columns(timestamp=pl.Series(SECONDS)), tmp_path, name="plain")
    info = prepare_log(log.with_columns(timestamp=pl.Series(times)), tmp_path, **options)
    assert info["content_hash"] == expected["content_hash"]
    assert info["notes"]["time_unit"] == said
    zoned = kind not in ("no zone", "local", "naive datetimes")
    assert ("time_zone" not in info["notes"]) == zoned
    if kind == "local":
        assert "--time_zone=Asia/Kolkata" in info["notes"]["time_zone"]


def test_milliseconds_order_the_events_of_a_second(tmp_path):
    times = [START * 1000 + ms for ms in (900, 100, 500)]
    log = pl.DataFrame({"user": ["u"] * 3, "item": list("cab"), "timestamp": times})
    prepare_log(log, tmp_path)
    dataset = open_dataset(tmp_path / "data")
    assert [dataset.items.raw_ids[i] for i in dataset[0].ids] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([[1.7e9, 1.7e12]], "row 1.*file has one unit"),
        ([["2024-01-01", "1700000000"]], "row 1.*not a number of seconds"),
        ([[1_700_000_000], [1_700_000_000_000]], "time_unit is milliseconds"),
        ([["2024-03-31T02:30:00"]], "no such time in Europe/Berlin"),
        ([["2024-01-01T00:00:00"], ["2024-01-01T00:00:00Z"]], None),
    ],
)
def test_units_are_not_guessed_row_by_row(tmp_path, files, message):
    (tmp_path / "log").mkdir()
    for n, times in enumerate(files):
        frame = pl.DataFrame({"user": "u", "item": "i", "timestamp": times})
        frame.write_parquet(tmp_path / "log" / f"{n}.parquet")
    if message is None:  # each file states its zone, or states none: both are said
        assert "none in the input" in prepare_files(tmp_path)["notes"]["time_zone"]
        return
    with pytest.raises(UserError, match=message):
        prepare_files(tmp_path, time_zone="Europe/Berlin" if "Berlin" in message else "")


def test_ids_of_mixed_types_are_compared_as_text(tmp_path):
    (tmp_path / "log").mkdir()
    numbers = pl.DataFrame({"user": [7, 8], "item": [1, 2], "timestamp": [5, 6]})
    numbers.write_parquet(tmp_path / "log" / "0.parquet")
    texts = pl.DataFrame({"user": ["7", "é"], "item": ["2", "坂"], "timestamp": [7, 8]})
    texts.write_parquet(tmp_path / "log" / "1.parquet")
    lines = '{"user": 7, "item": "1", "timestamp": 9}\n{"user": "7", "item": 1, "timestamp": 9}\n'
    (tmp_path / "log" / "2.jsonl").write_text(lines)
    info = prepare_files(tmp_path)
    dataset = open_dataset(tmp_path / "data")
    assert [dataset.user(i) for i in range(3)] == ["7", "8", "é"]
    assert dataset.lengths.tolist() == [4, 1, 1] and info["duplicate_rows"] == 1
    assert "compared as text" in info["notes"]["user_id_types"]


def test_empty_shards(tmp_path):
    (tmp_path / "log").mkdir()
    log = random_log().drop("kind")
    log.write_parquet(tmp_path / "log" / "1.parquet")
    expected = prepare_files(tmp_path)["content_hash"]
    log.head(0).write_parquet(tmp_path / "log" / "0.parquet")
    log.head(0).write_csv(tmp_path / "log" / "2.csv")
    assert prepare_files(tmp_path)["content_hash"] == expected
    (tmp_path / "log" / "3.csv").touch()
    with pytest.raises(UserError, match=r"3\.csv is empty"):
        prepare_files(tmp_path)
    for name in ("1.parquet", "3.csv"):
        (tmp_path / "log" / name).unlink()
    with pytest.raises(UserError, match="has no events"):
        prepare_files(tmp_path, overwrite=True)


def one_user_with_most(events: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    users = pl.Series(np.where(np.arange(events) % 20 == 0, rng.integers(0, events, events), -1))
    return pl.DataFrame(
        {
            "user": users.cast(pl.String).replace("-1", "robot"),
            "item": rng.integers(0, 1000, events),
            "timestamp": START + rng.integers(0, 10**7, events),
        }
    )


def test_one_user_with_most_of_the_events(tmp_path):
    """Partitions are cut between users, so one is large, and its memory is checked."""
    log = one_user_with_most(100_000)
    expected = prepare_log(log, tmp_path, name="roomy")["content_hash"]
    assert prepare_log(log, tmp_path, max_memory="20MB")["content_hash"] == expected
    with pytest.raises(UserError, match=r"User 'robot' has 95000 events.*0\.0 GiB"):
        prepare_log(log, tmp_path, max_memory="18MB", overwrite=True)
    assert open_dataset(tmp_path / "data").content_hash == expected


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a separate file system of 4 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_moment(tmp_path, small_disk):
    """Space for less and less: each command succeeds, or changes nothing and leaves no file."""
    log = random_log(users=500, items=300, events=12_000)
    log[:6000].write_parquet(tmp_path / "first.parquet")
    log[6000:].write_parquet(tmp_path / "second.parquet")
    target, filler = small_disk / "data", small_disk / "filler"

    def options(name: str) -> PrepareOptions:
        return PrepareOptions(
            "interactions",
            str(target),
            input=str(tmp_path / name),
            progress=False,
            max_memory="2MB",
        )

    commands = [
        lambda: prepare(options("first.parquet")),
        lambda: append(options("second.parquet")),
        lambda: compact(str(target), "2MB", progress=False),
    ]
    failures = []
    for command in commands:
        content = open_dataset(target).content_hash if target.exists() else None
        free = os.statvfs(small_disk)
        free = free.f_bavail * free.f_bsize
        for room in range(0, free, 40_000):
            filler.write_bytes(bytes(free - room))
            try:
                command()
            except UserError as error:
                failures.append(str(error))
                assert "no room left on its disk" in str(error)
                filler.unlink()
                assert not list(small_disk.rglob("*.preparing"))
                if content is None:
                    assert not target.exists()
                else:
                    dataset = open_dataset(target)
                    assert dataset.content_hash == content and len(dataset.histories.ids)
            else:
                filler.unlink()
                break
        assert len(open_dataset(target).histories.ids) in (6000, 12_000)
    assert len(failures) > 10
