"""Datasets that do not fit in memory: users read one by one, raw ids mapped."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data import dataset as dataset_module
from rec2pm_jax.data import id_map
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.pipeline import train_iterator
from rec2pm_jax.data.prepare import append
from rec2pm_jax.data.splits import SPLIT_RULES, SPLITS, bound_rule, count_training_events
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_log, random_log

DATA = DataConfig(segment=3, segments=2, split_time="1030", validation_days=10 / 86_400)


@pytest.fixture
def on_disk(monkeypatch):
    """Treat every dataset as one that is too large for the memory."""
    monkeypatch.setattr(dataset_module, "IN_MEMORY_EVENTS", 0)
    monkeypatch.setattr(id_map, "IN_MEMORY_IDS", 0)


@pytest.fixture(params=["prepared", "appended", "kept"])
def directory(request, tmp_path):
    """A dataset in three shards, plain or with two appended logs."""
    ties = "keep" if request.param == "kept" else "shuffle"
    log = random_log(users=30, items=20, events=900)
    days = [log] if request.param == "prepared" else [log[:500], log[500:800], log[800:]]
    prepare_log(days[0], tmp_path, shards=3, type_column="kind", ties=ties)
    for number, day in enumerate(days[1:]):
        day.write_parquet(tmp_path / f"day{number}.parquet")
        append(
            PrepareOptions(
                "interactions",
                str(tmp_path / "data"),
                str(tmp_path / f"day{number}.parquet"),
                type_column="kind",
                progress=False,
            )
        )
    return tmp_path / "data"


def contents(dataset) -> dict:
    return {
        "sequences": [
            (s.user, s.ids.tolist(), s.times.tolist(), s.types.tolist())
            for s in map(dataset.sequence, range(len(dataset)))
        ],
        "items": [list(dataset.items.raw_ids), dataset.items.titles, dataset.items.categories],
        "counts": dataset.items.counts.tolist(),
        "lengths": dataset.lengths.tolist(),
        "users": [dataset.user(i) for i in range(len(dataset))],
        "indices": [dataset.user_index(raw) for raw in ("u0", "u17", "u29", "nobody", "")],
        "ids": [dataset.items.id_of(raw) for raw in ("i0", "i7", "i19", "nothing", "")],
        "table": dataset.item_table.rows(),
    }


@pytest.mark.smoke
def test_a_dataset_on_disk_reads_like_one_in_memory(directory, request):
    expected = contents(open_dataset(directory))
    request.getfixturevalue("on_disk")
    dataset = open_dataset(directory)
    assert contents(dataset) == expected
    assert "histories" not in vars(dataset)
    assert len(list(dataset)) == len(dataset)  # as Python iterates over what has places
    order = np.random.default_rng(0).permutation(len(dataset))
    several = [s.ids.tolist() for s in dataset.sequences(order)]
    assert several == [expected["sequences"][i][1] for i in order]


@pytest.mark.parametrize("types", [None, "buy=2,view"])
def test_batches_are_the_same(directory, request, types):
    def batches():
        found = train_iterator(open_dataset(directory), DATA, 8, 3, 1, 2, target_types=types)
        return [next(found) for _ in range(6)]

    expected = batches()
    request.getfixturevalue("on_disk")
    for left, right in zip(expected, batches(), strict=True):
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_array_equal(left[name], right[name], err_msg=name)
            assert left[name].dtype == right[name].dtype


@pytest.mark.parametrize("types", [None, "buy"])
def test_splits_are_the_same_from_small_blocks(directory, request, monkeypatch, types):
    def found():
        dataset = open_dataset(directory)
        rules = {n: bound_rule(DATA, dataset, n, types) for n in SPLIT_RULES}
        return {
            name: [
                rule.train_ends(dataset.lengths).tolist(),
                [rule.eligible(dataset.lengths, split).tolist() for split in SPLITS],
                [rule.targets(n, "test", u).tolist() for u, n in enumerate(dataset.lengths)],
                count_training_events(dataset, rule).tolist(),
            ]
            for name, rule in rules.items()
        }

    expected = found()
    request.getfixturevalue("on_disk")
    monkeypatch.setattr(dataset_module, "BLOCK_EVENTS", 50)
    assert found() == expected


def test_a_dataset_without_an_index_gets_one_with_one_line(tmp_path, on_disk, caplog):
    prepare_log(random_log(), tmp_path)
    shutil.rmtree(tmp_path / "data" / id_map.DIRECTORY, ignore_errors=True)
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(tmp_path / "data")
        assert not (tmp_path / "data" / id_map.DIRECTORY).exists()
        assert dataset.user_index("u3") is not None and dataset.user_index("x") is None
    assert len(caplog.records) == 1 and "is written, once" in caplog.text
    caplog.clear()
    assert open_dataset(tmp_path / "data").user(0) == "u0"
    assert not caplog.records
    file = tmp_path / "data" / id_map.DIRECTORY / "users-rows.npy"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="raw_ids is damaged .*; delete it"):
        open_dataset(tmp_path / "data").user_index("u3")


def test_a_damaged_record_is_found_when_it_is_read(tmp_path, on_disk):
    log = random_log(users=40, events=60_000)
    prepare_log(log, tmp_path)
    file = next((tmp_path / "data").glob("*.arrayrecord"))
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    dataset = open_dataset(tmp_path / "data")
    whole, damaged = 0, 0
    for user in range(len(dataset)):
        try:
            dataset.sequence(user)
            whole += 1
        except UserError as error:
            assert "is damaged; prepare the dataset again" in str(error)
            damaged += 1
    assert damaged == 1 and whole == len(dataset) - 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda d, other: shutil.copy(other / "sequences-00000-of-00001.arrayrecord", d),
            "do not match",
        ),
        (lambda d, other: next(d.glob("*.arrayrecord")).unlink(), "arrayrecord is missing"),
        (lambda d, other: next(d.glob("*.arrayrecord")).write_bytes(b"no"), "is damaged"),
        (lambda d, other: shutil.copy(other / "dataset.json", d), "was replaced by another"),
    ],
)
def test_files_of_another_dataset(tmp_path, on_disk, damage, message):
    log = random_log()
    prepare_log(log, tmp_path)
    renamed = log.with_columns(user=pl.lit("v") + pl.col("user"))  # equally long histories
    prepare_log(renamed, tmp_path, name="other")
    dataset = open_dataset(tmp_path / "data")
    damage(tmp_path / "data", tmp_path / "other")
    with pytest.raises(UserError, match=message):
        dataset.sequence(0)


def test_an_index_finds_ids_whose_hashes_collide(tmp_path, monkeypatch):
    monkeypatch.setattr(
        id_map, "hash_strings", lambda texts: np.array([len(t) for t in texts], np.uint64)
    )
    names = ["a", "bb", "b", "", "cc", "ä"]
    id_map.write_id_map(tmp_path, "users", pl.Series(names))
    ids = id_map.IdMap(tmp_path, "users", len(names))
    assert [ids.find(name) for name in names] == list(range(len(names)))
    assert ids.find("dd") is None and ids.find("long") is None
    assert list(ids) == names and ids[-1] == "ä"
    with pytest.raises(IndexError):
        ids[len(names)]
