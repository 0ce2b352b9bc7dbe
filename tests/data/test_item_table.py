"""Tables of items, and titles and categories in logs: read, checked, kept in datasets, as numbers."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.data.item_table import encode_content, read_item_table
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, prepare
from rec2pm_jax.errors import UserError

LOG = "user,item,timestamp,t,c\nann,tea,60,Tea,\nann,milk,90,,\n"
LOG += "bob,tea,70,Tee,drink\nbob,milk,71,Milk,\n"
ITEMS = "id,title,category,brand,vector\ntea,Green tea,,Leaf,3 4\nham,Ham,meat,Pig,0 1\n"
COLUMNS = {"title_column": "t", "category_column": "c"}


@pytest.fixture
def options(tmp_path):
    def make(log: str = LOG, items: str = "", **given) -> PrepareOptions:
        (tmp_path / "log.csv").write_text(log)
        if items:
            (tmp_path / "items.csv").write_text(items)
            given["items"] = str(tmp_path / "items.csv")
        values = {"source": "interactions", "output_dir": str(tmp_path / "data")} | given
        return PrepareOptions(input=str(tmp_path / "log.csv"), progress=False, **values)

    return make


def facts(dataset) -> dict:
    return {row.pop("raw_id"): row for row in dataset.item_table.drop("id").to_dicts()}


@pytest.mark.smoke
def test_a_table_adds_items_without_events(options, tmp_path):
    prepare(options(items=ITEMS, **COLUMNS))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.histories.ids.max() == 2 and dataset.num_items == 3
    assert dataset.items.raw_ids == ["", "milk", "tea", "ham"]
    found = facts(dataset)
    assert found["ham"] == {
        "count": 0,
        "title": "Ham",
        "category": "meat",
        "attributes": ["brand=Pig"],
        "vector": [0, 1],
    }
    assert (found["tea"]["title"], found["tea"]["category"]) == ("Green tea", "drink")
    assert found["milk"]["title"] == "Milk" and found["milk"]["attributes"] is None


def test_titles_and_categories_of_a_log(options, tmp_path):
    """The first row of an item that states one counts; a note counts the others."""
    info, _ = prepare(options(**COLUMNS))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.items.titles == ["", "Milk", "Tea"]
    assert dataset.items.categories == [None, None, "drink"]
    assert info["notes"]["other_titles"].startswith("1 rows")
    assert dataset.item_table.columns == ["id", "raw_id", "count", "title", "category"]


def test_appended_tables_change_what_is_known(options, tmp_path):
    prepare(options(items=ITEMS, **COLUMNS))
    log = "user,item,timestamp,t,c\nann,ham,160,X,\nann,egg,190,Egg,\n"
    append(options(log, "id,category,brand\ntea,drinks,Sea\npig,meat,Pig\n", source=""))
    dataset = open_dataset(tmp_path / "data")
    assert dataset.items.raw_ids == ["", "milk", "tea", "ham", "egg", "pig"]
    assert dataset.items.counts.tolist() == [0, 2, 2, 1, 1, 0]
    found = facts(dataset)
    assert found["tea"]["attributes"] == ["brand=Sea"] and found["tea"]["vector"] == [3, 4]
    assert found["tea"]["category"] == "drinks" and found["ham"]["title"] == "Ham"
    before = dataset.item_table
    compact(str(tmp_path / "data"), progress=False)
    compacted = open_dataset(tmp_path / "data")
    assert compacted.item_table.equals(before) and len(compacted.histories.ids) == 6


def test_the_content_hash_covers_content(options, tmp_path):
    changed = [ITEMS, ITEMS.replace("Leaf", "Leaves"), ITEMS.replace("3 4", "3 5")]
    hashes = []
    for number, items in enumerate(changed):
        info, _ = prepare(options(items=items, output_dir=str(tmp_path / str(number))))
        hashes.append(info["content_hash"])
    assert len(set(hashes)) == 3
    assert not prepare(options(items=ITEMS, output_dir=str(tmp_path / "0")))[1]  # the very same


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            "id,title\ntea,a\ntea,b\n",
            'items.csv, row 3, column "id": an id that an earlier row has',
        ),
        ("id,title\ntea,a\n,b\n", 'items.csv, row 3, column "id": an empty id'),
        ("id,vector\ntea,1 2\nham,1\n", 'row 3, column "vector": a vector of another length'),
        ("id,vector\ntea,1 nan\n", 'row 2, column "vector": .*no finite number'),
        ("id,vector\ntea,1 x\n", 'row 2, column "vector": .*no finite number'),
        ("sku,title\ntea,a\n", 'has no column "id"; its columns are sku, title'),
    ],
)
def test_a_bad_table_is_refused_and_nothing_is_written(options, tmp_path, items, message):
    with pytest.raises(UserError, match=message) as error:
        prepare(options(items=items))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "data").exists()


def test_an_absent_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--items=.*absent.csv does not exist"):
        read_item_table(tmp_path / "absent.csv")


def test_bad_vectors_of_parquet_are_named_in_one_line(tmp_path):
    file = tmp_path / "items.parquet"
    pl.DataFrame({"id": [1, 2], "vector": [[1.0, 2.0], [1.0, np.inf]]}).write_parquet(file)
    with pytest.raises(UserError, match=r'row 2, column "vector": .* \(.1.0 inf.\)') as error:
        read_item_table(file)
    assert "\n" not in str(error.value)
    pl.DataFrame({"id": [1], "tags": [["a", "b"]]}).write_parquet(file)
    with pytest.raises(UserError, match='column "tags": attributes are texts or numbers'):
        read_item_table(file)


def test_content_as_numbers_agrees_with_a_slow_one(tmp_path):
    (tmp_path / "items.csv").write_text(
        'id,title,category,brand,size,vector\n1,"Tea, green TEA!",drink,Leaf,2,3 4\n'
        "2,,,,,\n3,,x,,5,0 0\n"
    )
    table = read_item_table(tmp_path / "items.csv")
    codes, vectors = encode_content(table, 1000)
    texts = [
        [],
        ["category=drink", "title=tea", "title=green", "brand=Leaf", "size=2"],
        [],
        ["category=x", "size=5"],
    ]
    assert codes.shape == (4, 5) and codes.dtype == np.int32
    for row, wanted in zip(codes, texts, strict=True):
        numbers = [1 + int(h) % 1000 for h in hash_strings(wanted)] if wanted else []
        assert sorted(row[row > 0].tolist()) == sorted(numbers)
    np.testing.assert_allclose(vectors, [[0, 0], [0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    titles_only = pl.DataFrame({"title": ["a b", None], "category": [None, "c"]})
    codes, vectors = encode_content(titles_only.cast(pl.String), 10)
    assert (codes > 0).sum(axis=1).tolist() == [0, 2, 1] and vectors.shape == (3, 0)


def test_tables_of_different_vectors_are_refused_together():
    items = pl.DataFrame({"title": ["a", "b"], "category": ["", ""], "vector": [[1.0], [1.0, 2.0]]})
    with pytest.raises(UserError, match="vectors have 1, 2 numbers"):
        encode_content(items.with_columns(attributes=pl.lit(None, pl.List(pl.String))), 10)


def test_beam_refuses_content(options):
    beam = pytest.importorskip("rec2pm_jax.data.prepare.beam")
    with pytest.raises(UserError, match="leave --title_column out"):
        beam.prepare_with_beam(options(title_column="t"))


def test_the_dataset_remembers_the_columns(options, tmp_path):
    prepare(options(**COLUMNS))
    reading = json.loads((tmp_path / "data" / "dataset.json").read_text())["reading"]
    assert (reading["title_column"], reading["category_column"]) == ("t", "c")
    append(options("user,item,timestamp,t,c\nann,egg,190,Egg,food\n", source=""))
    assert open_dataset(tmp_path / "data").items.titles[-1] == "Egg"
