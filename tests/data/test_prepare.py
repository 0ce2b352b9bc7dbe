"""Preparation against a row-by-row reference, and datasets that are damaged or replaced."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.event_order import argsort
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_frames, prepare_log, random_log
from tests.helpers.data_reference import filtered, reference_hash


def hash_of(log: pl.DataFrame, ties: str = "shuffle", seed: int = 0) -> str:
    return reference_hash([(*row, 0) for row in log.rows()], ties, seed)


FROZEN = {
    "shuffle": "72ad76687859c829ec8cf9e88c471a9a3fe3763061a4eb1e657a1c45d742bfae",
    "keep": "aef8e50409b34d410008f3089228eaea90e0ab96270426a6092904e4f60d7157",
    "filtered": "71667a9a52d95137de450e456edd4981ab0082425770761461716a65d77310ff",
}


def test_content_hashes_are_frozen(tmp_path):
    """Records of finished runs name these hashes, and a new tie order would reorder baskets."""
    thresholds = {"min_item_count": 30, "min_user_events": 20}
    for name, options in {"shuffle": {}, "keep": {"ties": "keep"}, "filtered": thresholds}.items():
        info = prepare_log(random_log(), tmp_path, name=name, type_column="kind", **options)
        assert info["content_hash"] == FROZEN[name]


@settings(max_examples=20, deadline=None)
@given(
    data_seed=st.integers(0, 1000),
    frames=st.integers(1, 6),
    rows=st.sampled_from([40, 90, 400]),
    ordered=st.booleans(),
    thresholds=st.sampled_from([(0, 0), (30, 20), (20, 20)]),
    ties=st.sampled_from(["shuffle", "keep"]),
)
def test_stages_equal_the_reference_whatever_the_frames_and_the_memory(
    data_seed, frames, rows, ordered, thresholds, ties
):
    log = random_log(seed=data_seed)
    rng = np.random.default_rng(data_seed)
    log = log.with_columns(order=rng.integers(0, 3, log.height) * ordered)
    assume(filtered(log.rows(), *thresholds))
    names = ("min_item_count", "min_user_events")
    options = dict(zip(names, thresholds, strict=True)) | {"ties": ties}
    canonical = log.rename({"kind": "event_type"}).select(
        pl.all() if ordered else pl.exclude("order")
    )
    if ties == "shuffle":
        canonical = canonical.sample(fraction=1, shuffle=True, seed=data_seed)
    cuts = np.sort(rng.integers(0, log.height, frames - 1))
    parts = [canonical[a:b] for a, b in zip([0, *cuts], [*cuts, log.height], strict=True)]
    with tempfile.TemporaryDirectory() as directory:
        info = prepare_frames(parts, Path(directory), max_memory=f"{rows}kB", **options)
        dataset = open_dataset(Path(directory) / "data")
        assert dataset.histories.lengths.sum() == info["events"]  # checks the hash of the files
        assert sorted(p.name for p in Path(directory).iterdir()) == ["data"]
    expected = reference_hash(log.rows(), ties, 0, *thresholds)
    assert info["content_hash"] == expected
    assert info["events"] + sum(info["dropped_rows"].values()) == log.height


@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1), st.integers(0, 3), st.integers(-(2**40), 2**40)
        ),
        max_size=30,
    )
)
def test_packed_keys_sort_as_tuples_do(rows):
    keys = np.array(rows, np.int64).reshape(-1, 3).T
    for order in ([0, 1, 2], [1, 2, 0], [1, 2]):
        expected = sorted(range(len(rows)), key=lambda i: [rows[i][k] for k in order])  # noqa: B023
        assert argsort(*keys[order]).tolist() == expected


def test_content_hash_depends_on_content():
    log = random_log()
    hashes = {hash_of(log), hash_of(log.head(399)), hash_of(log, seed=1), hash_of(log, "keep")}
    later = log.with_columns(pl.col("timestamp") + 1)
    assert len(hashes | {hash_of(later)}) == 5


def test_kept_ties_follow_the_input_and_shuffled_ties_do_not(tmp_path):
    log = pl.DataFrame(
        {
            "user": ["u"] * 50,
            "item": [f"i{n:02d}" for n in range(50)],
            "timestamp": [5] * 25 + [3] * 25,
        }
    )  # all counts are 1, so ids go by raw id
    prepare_frames([log], tmp_path, ties="keep")
    kept = open_dataset(tmp_path / "data").histories.ids.tolist()
    assert kept == [*range(26, 51), *range(1, 26)]
    prepare_frames([log], tmp_path, overwrite=True)
    shuffled = open_dataset(tmp_path / "data").histories.ids.tolist()
    assert sorted(shuffled[:25]) == list(range(26, 51))  # still in the order of time
    assert shuffled[:25] != list(range(26, 51))


def test_ids_go_by_count_then_raw_id(tmp_path):
    log = pl.DataFrame(
        {"user": ["u"] * 6, "item": ["b", "a", "c", "c", "é", "B"], "timestamp": [0] * 6}
    )
    info = prepare_frames([log], tmp_path)
    items = open_dataset(tmp_path / "data").items
    assert items.raw_ids[1:] == ["c", "B", "a", "b", "é"]
    assert items.counts.tolist() == [0, 2, 1, 1, 1, 1]
    assert info["duplicate_rows"] == 1


def test_filters_are_iterated(tmp_path):
    # Item z goes (1 event); then user b has 1 event and goes; then item y has 1 event and goes.
    rows = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "y"), ("b", "z")]
    log = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    log = log.with_columns(timestamp=pl.lit(0, pl.Int64))
    info = prepare_frames([log], tmp_path, min_item_count=2, min_user_events=2)
    assert open_dataset(tmp_path / "data").items.raw_ids == ["", "x"]
    assert info["dropped_rows"] == {"min_item_count": 2, "min_user_events": 1}


@pytest.mark.smoke
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

    monkeypatch.setattr("rec2pm_jax.data.prepare.write.write_users", fail)
    with pytest.raises(UserError, match="no room left"):
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
