from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data import filters
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.histories import build_histories, content_hash
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.schema import no_items
from rec2pm_jax.errors import UserError
from tests.data_fixtures import prepare_log, random_log


def hash_of(log: pl.DataFrame, ties: str = "shuffle", seed: int = 0) -> str:
    events = log.rename({"kind": "event_type"})
    items = filters.vocabulary(events, no_items())
    histories, types = build_histories(events, items, ties, seed)
    return content_hash(histories, items, types, True)


@settings(max_examples=30, deadline=None)
@given(data_seed=st.integers(0, 1000), order_seed=st.integers(0, 1000))
def test_content_hash_does_not_depend_on_the_order_of_rows(data_seed, order_seed):
    log = random_log(seed=data_seed)
    shuffled = log.sample(fraction=1, shuffle=True, seed=order_seed)
    assert hash_of(shuffled) == hash_of(log)


def test_content_hash_depends_on_content():
    log = random_log()
    hashes = {hash_of(log), hash_of(log.head(399)), hash_of(log, seed=1), hash_of(log, "keep")}
    later = log.with_columns(pl.col("timestamp") + 1)
    assert len(hashes | {hash_of(later)}) == 5


def test_kept_ties_follow_the_input_and_shuffled_ties_do_not():
    log = pl.DataFrame(
        {
            "user": ["u"] * 50,
            "item": [f"i{n:02d}" for n in range(50)],
            "timestamp": [5] * 25 + [3] * 25,
            "kind": ["a"] * 50,
        }
    ).rename({"kind": "event_type"})
    items = filters.vocabulary(log, no_items())  # all counts are 1, so ids go by raw id
    kept, _ = build_histories(log, items, "keep", 0)
    assert kept.ids.tolist() == [*range(26, 51), *range(1, 26)]
    shuffled, _ = build_histories(log, items, "shuffle", 0)
    assert sorted(shuffled.ids[:25].tolist()) == list(range(26, 51))  # still in the order of time
    assert shuffled.ids[:25].tolist() != list(range(26, 51))


def test_the_tie_order_is_frozen():
    """A change of the hash would silently reorder every basket of every prepared dataset."""
    log = pl.DataFrame(
        {"user": ["u"] * 6, "item": list("aabcde"), "timestamp": [7] * 6, "event_type": ["x"] * 6}
    )
    items = filters.vocabulary(log, no_items())
    histories, _ = build_histories(log, items, "shuffle", 0)
    assert [items["raw_id"][i - 1] for i in histories.ids.tolist()] == list("eacbda")


def test_ids_go_by_count_then_raw_id():
    log = pl.DataFrame(
        {"user": ["u"] * 6, "item": ["b", "a", "c", "c", "é", "B"], "timestamp": [0] * 6}
    )
    table = filters.vocabulary(log, no_items())
    assert table["raw_id"].to_list() == ["c", "B", "a", "b", "é"]
    assert table["id"].to_list() == [1, 2, 3, 4, 5]
    assert table["count"].to_list() == [2, 1, 1, 1, 1]


def test_filters_are_iterated():
    # Item z goes (1 event); then user b has 1 event and goes; then item y has 1 event and goes.
    rows = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "y"), ("b", "z")]
    log = pl.DataFrame(rows, schema=["user", "item"], orient="row").with_columns(timestamp=0)
    events, dropped = filters.apply_filters(log, min_item_count=2, min_user_events=2)
    assert events["item"].to_list() == ["x", "x"]
    assert dropped == {"min_item_count": 2, "min_user_events": 1}


@pytest.mark.parametrize("shards", [1, 3, 50])
def test_a_dataset_reads_back(tmp_path, shards):
    log = random_log()
    info = prepare_log(log, tmp_path, type_column="kind", shards=shards)
    dataset = open_dataset(tmp_path / "data")
    assert dataset.content_hash == info["content_hash"] == hash_of(log)
    assert len(list((tmp_path / "data").glob("*.arrayrecord"))) == info["shards"]
    assert dataset.num_users == len(dataset) == log["user"].n_unique()
    assert dataset.event_types == ["buy", "view"]
    assert dataset.items.counts.sum() == log.height
    assert dataset.items.raw_ids[0] == "" and dataset.items.id_of("nothing") is None
    for (user,), rows in log.group_by("user"):
        sequence = dataset[dataset.user_index(user)]
        assert sequence.user == user
        assert len(sequence.ids) == dataset.lengths[dataset.user_index(user)]
        assert {a.dtype for a in sequence[1:]} == {np.dtype(np.int32)}
        read = zip(
            sequence.times + dataset.time_origin,
            [dataset.items.raw_ids[i] for i in sequence.ids],
            [dataset.event_types[t - 1] for t in sequence.types],
            strict=True,
        )
        assert (np.diff(sequence.times) >= 0).all()
        assert sorted(read) == sorted(rows.select("timestamp", "item", "kind").rows())
    assert all(dataset.items.id_of(raw) == i for i, raw in enumerate(dataset.items.raw_ids) if i)


def test_shards_do_not_change_the_hash(tmp_path):
    hashes = {
        prepare_log(random_log(), tmp_path, name=f"n{n}", shards=n)["content_hash"] for n in (1, 4)
    }
    assert len(hashes) == 1


def test_an_existing_dataset_is_only_replaced_when_asked(tmp_path):
    def options(log, **kwargs):
        log.write_csv(tmp_path / "log.csv")
        return PrepareOptions(
            "interactions",
            str(tmp_path / "data"),
            input=str(tmp_path / "log.csv"),
            progress=False,
            **kwargs,
        )

    first, other = random_log(seed=0), random_log(seed=1)
    info, written = prepare(options(first))
    assert written
    assert prepare(options(first)) == ({k: v for k, v in info.items() if k != "shards"}, False)
    with pytest.raises(UserError, match="add --overwrite"):
        prepare(options(other))
    assert open_dataset(tmp_path / "data").content_hash == info["content_hash"]
    replaced, written = prepare(options(other, overwrite=True))
    assert written and replaced["content_hash"] != info["content_hash"]
    assert open_dataset(tmp_path / "data").histories.users
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "log.csv"]


def test_overwrite_never_deletes_a_foreign_directory(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("all my work")
    with pytest.raises(UserError, match="holds no prepared dataset"):
        prepare_log(random_log(), tmp_path, overwrite=True)
    assert (tmp_path / "data" / "thesis.txt").exists()


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rec2pm_jax.data.writer.write_tables", fail)
    with pytest.raises(UserError, match="No space left"):
        prepare_log(random_log(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["data.parquet"]


def damage_info(directory, **changes):
    info = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps(info | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "dataset.json").unlink(), "no prepared dataset"),
        (lambda d: (d / "dataset.json").write_text("{"), "damaged"),
        (lambda d: damage_info(d, format_version=99), "format version 99"),
        (lambda d: (d / "users.parquet").unlink(), "users.parquet is missing"),
        (lambda d: (d / "items.parquet").write_bytes(b"PAR1"), "items.parquet is missing or dam"),
        (lambda d: damage_info(d, users=3), "has 12 rows, dataset.json says 3"),
        (lambda d: damage_info(d, content_hash="0" * 64), "do not match the content hash"),
        (lambda d: next(d.glob("*.arrayrecord")).unlink(), "arrayrecord is missing"),
        (lambda d: next(d.glob("*.arrayrecord")).write_bytes(b"no"), "arrayrecord is damaged"),
    ],
)
def test_damaged_datasets(tmp_path, damage, message):
    prepare_log(random_log(), tmp_path)
    damage(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        _ = open_dataset(tmp_path / "data").histories
