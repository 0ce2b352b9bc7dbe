"""Logs that a dataset holds: known by their hash, listed, and removed again."""

from __future__ import annotations

import dataclasses
import json

import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, list_logs, prepare, summary, undo_append
from rec2pm_jax.errors import UserError
from tests.helpers.data import random_log

RETAIL = {"user_column": "CustomerID", "item_column": "StockCode", "time_column": "InvoiceDate"}
HEADER = "CustomerID;StockCode;InvoiceDate;InvoiceNo\n"
DAYS = (
    "17850;85123A;12/1/2010 8:26;536365\n17850;71053;12/1/2010 8:28;536365\n",
    "13047;84879;12/2/2010 8:34;536367\n17850;71053;12/2/2010 8:28;C536\n",
    "13047;22960;12/3/2010 8:34;536368\n",
)


@pytest.fixture
def shop(tmp_path):
    """A dataset of the first day; returns a function that makes the options of a day."""
    for day, rows in enumerate(DAYS):
        (tmp_path / f"{day}.csv").write_text(HEADER + rows)

    def options(day: int, **changes) -> PrepareOptions:
        return PrepareOptions(
            **{"source": "", "input": str(tmp_path / f"{day}.csv"), "progress": False}
            | {"output_dir": str(tmp_path / "data")}
            | changes
        )

    reading = {"time_format": "%m/%d/%Y %H:%M", "drop": ["InvoiceNo=^C"], **RETAIL}
    prepare(options(0, source="interactions", ties="keep", **reading))
    return options


def test_append_reads_a_log_as_the_first_one_was_read(shop):
    info = append(shop(1))
    assert info["events"] == 3 and info["dropped_rows"]["--drop=InvoiceNo=^C"] == 1
    assert info["reading"]["user_column"] == "CustomerID"
    assert "notes" in info and "separator: ';' (detected)" in summary(info)
    with pytest.raises(UserError, match="has no --user_column=user"):
        append(shop(2, user_column="user"))


def test_another_source_is_refused(shop):
    with pytest.raises(UserError, match="--source=movielens: .* was prepared from interactions"):
        append(shop(1, source="movielens"))


def test_a_log_is_refused_the_second_time_unless_forced(shop, tmp_path):
    first = append(shop(1))
    shuffled = pl.read_csv(tmp_path / "1.csv", separator=";", infer_schema=False).reverse()
    shuffled.write_csv(tmp_path / "other name.tsv", separator="\t")
    again = [shop(0), shop(1), shop(1, input=str(tmp_path / "other name.tsv"))]
    for options in again:  # also the log of the base, rows in another order, another format
        with pytest.raises(UserError, match=r"holds this log already \(\d rows.*add --force"):
            append(options)
        assert open_dataset(tmp_path / "data").info == first
    info = append(shop(1, force=True))
    assert info["events"] == first["events"] + 1
    compact(str(tmp_path / "data"), progress=False)
    with pytest.raises(UserError, match="holds this log already"):
        append(shop(1))


@pytest.mark.parametrize("keep_dropped", [False, True])
def test_events_of_earlier_logs_do_not_hide_a_known_log(tmp_path, keep_dropped):
    log = random_log().drop("kind")
    log.write_parquet(tmp_path / "log.parquet")
    log.head(50).write_parquet(tmp_path / "part.parquet")
    options = PrepareOptions(
        "interactions", str(tmp_path / "data"), str(tmp_path / "log.parquet"), progress=False
    )
    rare = dataclasses.replace(options, min_item_count=30, keep_dropped=keep_dropped)
    assert prepare(rare)[0]["dropped_rows"]["min_item_count"] > 0
    with pytest.raises(UserError, match="holds this log already"):
        append(options)
    part = dataclasses.replace(options, input=str(tmp_path / "part.parquet"))
    append(part)
    with pytest.raises(UserError, match=r"holds this log already \(50 rows"):
        append(part)


@pytest.mark.parametrize(("first", "second"), [("17850.0", "17850"), ("17850", "17850.0")])
def test_ids_that_two_logs_write_in_two_ways_are_noted(tmp_path, first, second):
    header = "user,item,timestamp\n"
    (tmp_path / "1.csv").write_text(f"{header}{first},{first},1\n8,b,2\n")
    (tmp_path / "2.csv").write_text(f"{header}{second},{second},3\n8,b,4\n9,9,5\n")
    options = PrepareOptions(
        "interactions", str(tmp_path / "data"), str(tmp_path / "1.csv"), progress=False
    )
    prepare(options)
    text = summary(append(dataclasses.replace(options, input=str(tmp_path / "2.csv"))))
    for kind in ("user", "item"):
        assert (
            f"{kind} ids twice: 1 new ids differ from known ones by .0 only, such as '17850" in text
        )


def test_the_list_of_logs(shop, tmp_path):
    append(shop(1))
    lines = list_logs(str(tmp_path / "data")).splitlines()
    assert [line.split()[:2] for line in lines] == [["base", "2"], ["delta-00001", "1"]]
    assert lines[1].endswith(str(tmp_path / "1.csv"))
    compact(str(tmp_path / "data"), progress=False)
    append(shop(2))
    places = [line.split()[0] for line in list_logs(str(tmp_path / "data")).splitlines()]
    assert places == ["base", "base", "delta-00001"]


def test_the_newest_log_can_be_removed(shop, tmp_path):
    place = str(tmp_path / "data")
    with pytest.raises(UserError, match="has no appended log"):
        undo_append(place)
    infos = [open_dataset(place).info, append(shop(1)), append(shop(2))]
    assert undo_append(place) == infos[1]
    assert sorted(p.name for p in (tmp_path / "data").glob("delta*")) == ["delta-00001"]
    assert append(shop(2)) == infos[2]  # no longer known
    assert undo_append(place) == infos[1] and undo_append(place) == infos[0]
    assert len(open_dataset(place).histories.ids) == 2
    append(shop(1))
    (tmp_path / "data" / "delta-00001" / "previous.json").unlink()  # as of version 0.1
    with pytest.raises(UserError, match="previous.json is missing"):
        undo_append(place)


def test_a_killed_undo_leaves_a_whole_dataset(shop, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_args, **_kwargs):
        raise Killed

    info = open_dataset(tmp_path / "data").info
    append(shop(1))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("shutil.rmtree", die)
        undo_append(str(tmp_path / "data"))
    assert open_dataset(tmp_path / "data").info == info
    assert append(shop(2))["events"] == 3


def test_datasets_of_version_0_1(shop, tmp_path):
    file = tmp_path / "data" / "dataset.json"
    old = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("logs", "reading")}
    file.write_text(json.dumps(old))
    assert "version 0.1" in list_logs(str(tmp_path / "data"))
    with pytest.raises(UserError, match="no --user_column=user"):
        append(shop(1))
    append(shop(1, time_format="%m/%d/%Y %H:%M", **RETAIL))
    assert list_logs(str(tmp_path / "data")).split()[0] == "delta-00001"
