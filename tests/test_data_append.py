"""append + compact == a rebuild from all logs, up to ids."""

from __future__ import annotations

import jax.numpy as jnp
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.append import append, compact
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.errors import UserError
from rec2pm_jax.train.growth import grow_items
from tests.data_fixtures import prepare_log, random_log


def sequences(dataset) -> dict:
    """Every user's (item, time, type), oldest first, in raw names."""
    result = {}
    for i in range(len(dataset)):
        user, ids, times, types = dataset[i]
        names = [dataset.items.raw_ids[j] for j in ids], [dataset.event_types[t - 1] for t in types]
        result[user] = list(zip(names[0], times + dataset.time_origin, names[1], strict=True))
    return result


def append_log(log: pl.DataFrame, directory, name: str) -> dict:
    log.write_parquet(directory / f"{name}.parquet")
    return append(
        PrepareOptions(
            source="interactions",
            input=str(directory / f"{name}.parquet"),
            output_dir=str(directory / "data"),
            progress=False,
            type_column="kind",
        )
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), ties=st.sampled_from(["shuffle", "keep"]))
def test_append_and_compact_equal_a_rebuild(tmp_path_factory, seed, ties):
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
    hashes.add(compact(str(tmp_path / "data"))["content_hash"])
    compacted = open_dataset(tmp_path / "data")
    assert sequences(compacted) == sequences(rebuilt)
    assert compacted.items.raw_ids == appended.items.raw_ids
    assert len(hashes) == 4
    assert {*compacted.info["grown_from"], compacted.content_hash} == hashes
    assert not list((tmp_path / "data").glob("delta-*"))


def test_new_items_get_rows_that_depend_on_nothing_else():
    params = {"embedding": {"item_embedding": jnp.ones((3, 4)), "x": 1}, "backbone": 2}
    at_once = grow_items(params, 7, seed=0)
    by_turns = grow_items(grow_items(params, 4, seed=0), 7, seed=0)
    table = at_once["embedding"]["item_embedding"]
    assert table.shape == (8, 4) and at_once["backbone"] == 2
    assert (table == by_turns["embedding"]["item_embedding"]).all()
    assert (table[:3] == 1).all() and (table[3:] != 0).all() and (abs(table[3:]) <= 0.04).all()
    assert grow_items(params, 2, seed=0) is params


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
    with pytest.raises(UserError, match="differ in having real times or event types"):
        log = tmp_path / "plain.parquet"
        rare.write_parquet(log)
        append(
            PrepareOptions("interactions", str(tmp_path / "data"), input=str(log), progress=False)
        )
    next((tmp_path / "data" / "delta-00001").glob("*.arrayrecord")).write_bytes(b"no")
    with pytest.raises(UserError, match="damaged"):
        _ = open_dataset(tmp_path / "data").histories
