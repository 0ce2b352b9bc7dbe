"""append and compact give what a preparation of all logs gives, except for the order of ids."""

from __future__ import annotations

import shutil

import jax.numpy as jnp
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, compaction, summary
from rec2pm_jax.errors import UserError
from rec2pm_jax.training.new_items import grow_items
from tests.helpers.data import prepare_log, random_log


def sequences(dataset) -> dict:
    """Return every user's (item, time, type), oldest first, in raw names."""
    result = {}
    for i in range(len(dataset)):
        user, ids, times, types = dataset[i]
        names = [dataset.items.raw_ids[j] for j in ids], [dataset.event_types[t - 1] for t in types]
        result[user] = list(zip(names[0], times + dataset.time_origin, names[1], strict=True))
    return result


def append_log(log: pl.DataFrame, directory, name: str, **options) -> dict:
    log.write_parquet(directory / f"{name}.parquet")
    return append(
        PrepareOptions(
            source="interactions",
            input=str(directory / f"{name}.parquet"),
            output_dir=str(directory / "data"),
            progress=False,
            type_column="kind",
            **options,
        )
    )


def count_late(days: list[pl.DataFrame]) -> int:
    """Count the events older than their user's newest on the days before; slow and obvious."""
    newest, late = {}, 0
    for day in days:
        rows = day.select("user", "timestamp").rows()
        late += sum(time < newest.get(user, time) for user, time in rows)
        for user, time in rows:
            newest[user] = max(newest.get(user, time), time)
    return late


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 1000),
    ties=st.sampled_from(["shuffle", "keep"]),
    max_memory=st.sampled_from(["40kB", "90kB", "4GiB"]),
)
def test_append_and_compact_equal_a_rebuild(tmp_path_factory, seed, ties, max_memory):
    tmp_path = tmp_path_factory.mktemp("append")
    log = random_log(seed=seed)  # times in random order: many events of the later parts are late
    days = [log[:300].filter(pl.col("kind") == "buy"), log[:300].filter(pl.col("kind") == "view")]
    days.append(log[300:].with_columns(user=pl.col("user") + "x", item="new " + pl.col("item")))
    days[2] = pl.concat([days[2], log[390:]])
    prepare_log(pl.concat(days), tmp_path, name="all", type_column="kind", ties=ties)
    prepare_log(days[0], tmp_path, type_column="kind", ties=ties)
    before = open_dataset(tmp_path / "data")
    hashes = {before.content_hash}
    for n, day in enumerate(days[1:]):
        hashes.add(append_log(day, tmp_path, f"day{n}")["content_hash"])
    rebuilt, appended = open_dataset(tmp_path / "all"), open_dataset(tmp_path / "data")
    assert sequences(appended) == sequences(rebuilt)
    counts = dict(zip(rebuilt.items.raw_ids, rebuilt.items.counts, strict=True))
    assert dict(zip(appended.items.raw_ids, appended.items.counts, strict=True)) == counts
    assert appended.items.raw_ids[: before.num_items + 1] == before.items.raw_ids
    assert [appended.user(i) for i in range(len(before))] == [
        before.user(i) for i in range(len(before))
    ]
    late = appended.info["late_events"]
    assert late == count_late(days) > 0
    hashes.add(compact(str(tmp_path / "data"), max_memory, progress=False)["content_hash"])
    compacted = open_dataset(tmp_path / "data")
    assert sequences(compacted) == sequences(rebuilt)
    assert compacted.items.raw_ids == appended.items.raw_ids
    assert len(hashes) == 4
    assert {*compacted.info["grown_from"], compacted.content_hash} == hashes
    assert not list((tmp_path / "data").glob("delta-*"))


def test_new_items_start_in_the_middle_of_known_ones():
    rows = jnp.array([[99.0, 99], [1, 0], [0, 2], [2, 1]])
    params = {"embedding": {"item_embedding": rows, "x": 1}, "backbone": 2}
    at_once = grow_items(params, 7)
    by_turns = grow_items(grow_items(params, 4), 7)
    table = at_once["embedding"]["item_embedding"]
    assert table.shape == (8, 2) and at_once["backbone"] == 2
    assert jnp.allclose(table, by_turns["embedding"]["item_embedding"])
    assert (table[:4] == rows).all() and (table[4:] == 1).all()  # without the padding row
    assert grow_items(params, 3) is params


def test_frozen_filters_and_damage(tmp_path):
    prepare_log(random_log(), tmp_path, type_column="kind", min_item_count=5)
    known = open_dataset(tmp_path / "data").items.raw_ids
    rare = pl.DataFrame(
        {
            "user": ["u0"] * 7,
            "item": ["rare", known[1], *["often"] * 5],
            "timestamp": [2000] * 7,
            "kind": ["buy"] * 7,
        }
    )
    info = append_log(rare, tmp_path, "day")
    assert open_dataset(tmp_path / "data").items.raw_ids == [*known, "often"]
    assert info["dropped_rows"]["min_item_count"] == 1
    with pytest.raises(UserError, match="--min_item_count=3: .* prepared with 5"):
        append_log(rare, tmp_path, "day2", min_item_count=3)
    with pytest.raises(UserError, match="differ in having real times or event types"):
        log = tmp_path / "plain.parquet"
        rare.write_parquet(log)
        append(
            PrepareOptions(
                "interactions", str(tmp_path / "data"), str(log), progress=False, type_column=""
            )
        )
    next((tmp_path / "data" / "delta-00001").glob("*.arrayrecord")).write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        _ = open_dataset(tmp_path / "data").histories


def at_many_moments(log: pl.DataFrame) -> pl.DataFrame:
    """Return the log with distinct times, so that there are no ties."""
    return log.with_columns(timestamp=pl.int_range(pl.len()) * 7919 % pl.len() + 1000)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    thresholds=st.sampled_from([(4, 3), (25, 1), (1, 40), (30, 30)]),
    ties=st.sampled_from(["shuffle", "keep"]),
    cuts=st.sampled_from([(150, 300), (250, 260)]),
)
def test_with_dropped_events_kept_filters_count_over_all_logs(
    tmp_path_factory, seed, thresholds, ties, cuts
):
    tmp_path = tmp_path_factory.mktemp("append")
    log = at_many_moments(random_log(users=25, items=30, seed=seed))
    days = [log[a:b] for a, b in zip([0, *cuts], [*cuts, log.height], strict=True)]
    options = dict(zip(("min_item_count", "min_user_events"), thresholds, strict=True))
    options |= {"type_column": "kind", "ties": ties, "keep_dropped": True}
    try:
        prepare_log(days[0], tmp_path, max_memory="60kB", **options)
        for n, day in enumerate(days[1:]):
            append_log(day, tmp_path, f"day{n}", max_memory="60kB")
    except UserError as error:  # nothing to begin with, or nothing new
        assert "is left after" in str(error)
        assume(False)
    prepare_log(log, tmp_path, name="all", **options)
    rebuilt, appended = open_dataset(tmp_path / "all"), open_dataset(tmp_path / "data")
    assert sequences(appended) == sequences(rebuilt)
    assert sorted(appended.items.raw_ids) == sorted(rebuilt.items.raw_ids)
    gone = [sum(dataset.info["dropped_rows"].values()) for dataset in (appended, rebuilt)]
    assert gone[0] == gone[1]
    compact(str(tmp_path / "data"), "60kB", progress=False)
    assert sequences(open_dataset(tmp_path / "data")) == sequences(rebuilt)
    # The kept events have moved along: another log may still make use of them.
    append_log(log[:40].with_columns(pl.col("timestamp") + 5000), tmp_path, "more")
    assert open_dataset(tmp_path / "data").info["events"] > rebuilt.info["events"]


def test_an_item_of_two_days_is_known_where_dropped_events_are_kept(tmp_path):
    def day(time, titles=2):
        return pl.DataFrame(
            {
                "user": ["u", "u", "u", "v", "v", "v"],
                "item": ["a"] * 3 + ["b"] * titles + ["a"] * (3 - titles),
                "timestamp": [time] * 6,
                "kind": ["buy"] * 6,
            }
        )

    for name, kept in (("kept", True), ("gone", False)):
        (tmp_path / name).mkdir()
        prepare_log(
            day(10), tmp_path / name, type_column="kind", min_item_count=3, keep_dropped=kept
        )
        info = append_log(day(20), tmp_path / name, "day")
        dataset = open_dataset(tmp_path / name / "data")
        assert (dataset.items.id_of("b") is not None) == kept
        assert info["dropped_rows"]["min_item_count"] == (0 if kept else 4)
        assert ("are counted within each appended log" in summary(info)) != kept
    dropped = tmp_path / "kept" / "data" / "delta-00001" / "dropped"
    assert dropped.is_dir()
    (dropped / "titles.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="titles.parquet is missing or damaged"):
        append_log(day(30), tmp_path / "kept", "day2")


def test_nothing_new_is_refused_and_changes_nothing(tmp_path):
    prepare_log(random_log(), tmp_path, type_column="kind", min_item_count=5, keep_dropped=True)
    before = (tmp_path / "data" / "dataset.json").read_text()
    rare = pl.DataFrame({"user": ["x"], "item": ["y"], "timestamp": [1], "kind": ["buy"]})
    with pytest.raises(UserError, match="append the log together with the next one"):
        append_log(rare, tmp_path, "day")
    assert (tmp_path / "data" / "dataset.json").read_text() == before
    assert not list((tmp_path / "data").glob("delta*"))


def with_two_deltas(tmp_path):
    log = random_log(users=40, events=900)
    prepare_log(log[:500], tmp_path, type_column="kind")
    append_log(log[500:700], tmp_path, "day1")
    return append_log(log[700:], tmp_path, "day2")


class Killed(BaseException):
    """A kill; not an Exception, so that no clean-up code runs."""


def test_a_killed_compaction_resumes(tmp_path, monkeypatch):
    with_two_deltas(tmp_path)
    shutil.copytree(tmp_path / "data", tmp_path / "twin")
    expected = compact(str(tmp_path / "twin"), "60kB", progress=False)
    before = sequences(open_dataset(tmp_path / "data"))
    write, made = compaction.write_ordered, []

    def dying(directory, *args, **kwargs):
        made.append(directory.name)
        if len(made) % 4 == 3:
            raise Killed
        write(directory, *args, **kwargs)

    monkeypatch.setattr(compaction, "write_ordered", dying)
    kills = 0
    while True:
        try:
            assert compact(str(tmp_path / "data"), "60kB", progress=False) == expected
            break
        except Killed:
            kills += 1
            assert sequences(open_dataset(tmp_path / "data")) == before
    # Between its two renames the dataset is nowhere but in the workspace.
    (tmp_path / "data.preparing").mkdir()
    (tmp_path / "data").rename(tmp_path / "data.preparing" / "retired")
    with pytest.raises(UserError, match="has no deltas"):
        compact(str(tmp_path / "data"), progress=False)
    assert kills > 1 and len(made) == len(set(made)) + kills  # finished parts are not recomputed
    assert sequences(open_dataset(tmp_path / "data")) == before


def test_what_compaction_refuses_leaves_the_dataset(tmp_path, monkeypatch):
    with_two_deltas(tmp_path)
    with pytest.raises(UserError, match=r"User 'u0' has \d+ events.*raise --max_memory"):
        compact(str(tmp_path / "data"), "5kB", progress=False)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room left"):
        patch.setattr(compaction, "write_ordered", full)
        compact(str(tmp_path / "data"), progress=False)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["data"]
    before = sequences(open_dataset(tmp_path / "data"))
    next((tmp_path / "data" / "delta-00002").glob("*.arrayrecord")).write_bytes(b"no")
    with pytest.raises(UserError, match="delta-00002.*damaged"):
        compact(str(tmp_path / "data"), progress=False)
    assert before and (tmp_path / "data" / "delta-00001").is_dir()


def test_a_full_disk_at_the_last_moment_of_an_append(tmp_path, monkeypatch):
    info = with_two_deltas(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match="no room left"):
        patch.setattr("os.replace", full)
        append_log(random_log(seed=5), tmp_path, "day3")
    assert open_dataset(tmp_path / "data").info == info
    assert append_log(random_log(seed=5), tmp_path, "day3")["deltas"] == 3


def test_newest_times_of_an_older_dataset_are_read_from_its_events(tmp_path):
    log = random_log()
    prepare_log(log[:300], tmp_path, type_column="kind")
    users = tmp_path / "data" / "users.parquet"
    pl.read_parquet(users).drop("last").write_parquet(users)
    assert append_log(log[300:], tmp_path, "day")["late_events"] == count_late(
        [log[:300], log[300:]]
    )
