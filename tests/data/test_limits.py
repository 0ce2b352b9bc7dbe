"""Limits of the format, and metadata, are the same on every path: one log, append, compact, Beam."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, prepare
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_log

NOW = 1_577_836_800
LATER = 4_102_358_400  # 80 years


def log_of(times: list[int], **columns) -> pl.DataFrame:
    base = {"user": ["a"] * len(times), "item": [f"i{n}" for n in range(len(times))]}
    return pl.DataFrame(base | {"timestamp": times} | columns)


def append_log(log: pl.DataFrame, directory, **options) -> dict:
    log.write_parquet(directory / "more.parquet")
    return append(
        PrepareOptions(
            "", str(directory / "data"), str(directory / "more.parquet"), progress=False, **options
        )
    )


@pytest.mark.parametrize(("first", "second"), [(NOW, LATER), (LATER, NOW)])
def test_the_span_of_times_is_that_of_all_logs(tmp_path, first, second):
    with pytest.raises(UserError, match="more than int32 holds.*2020-01-01.*to 2099-12-31"):
        prepare_log(log_of([NOW, LATER]), tmp_path)
    prepare_log(log_of([first]), tmp_path)
    before = (tmp_path / "data" / "dataset.json").read_text()
    with pytest.raises(UserError, match="more than int32 holds"):
        append_log(log_of([second]), tmp_path)
    assert (tmp_path / "data" / "dataset.json").read_text() == before
    assert open_dataset(tmp_path / "data")[0].times.tolist() == [0]


def test_the_number_of_event_types_is_that_of_all_logs(tmp_path):
    def kinds(first: int) -> pl.DataFrame:
        return log_of([NOW] * 100, kind=[f"k{n}" for n in range(first, first + 100)])

    with pytest.raises(UserError, match="More than 127 event types"):
        prepare_log(pl.concat([kinds(0), kinds(100)]), tmp_path, type_column="kind")
    prepare_log(kinds(0), tmp_path, type_column="kind")
    with pytest.raises(UserError, match="More than 127 event types"):
        append_log(kinds(100), tmp_path)
    append_log(kinds(27), tmp_path)
    types = open_dataset(tmp_path / "data").histories.types
    assert types.min() == 1 and types.max() == 127


def test_times_that_do_not_fit_are_refused_by_readers_and_compact(tmp_path):
    """A dataset of version 0.1 may hold them: its append did not check."""
    prepare_log(log_of([NOW]), tmp_path)
    append_log(log_of([NOW + 1]), tmp_path)
    file = tmp_path / "data" / "dataset.json"
    info = json.loads(file.read_text())
    file.write_text(json.dumps(info | {"time_origin": NOW - 2**31}))
    with pytest.raises(UserError, match="more than int32 holds"):
        open_dataset(tmp_path / "data").sequence(0)


def test_one_content_under_other_rules_is_another_dataset(tmp_path):
    """Later logs follow the rules, so the same events under other rules are not the same dataset."""
    log = log_of([NOW, NOW + 1])
    prepare_log(log, tmp_path)
    with pytest.raises(UserError, match="already holds another dataset"):
        prepare_log(log, tmp_path, seed=1)
    assert prepare_log(log, tmp_path, seed=1, overwrite=True)["ties"]["seed"] == 1


def test_the_hash_of_a_dataset_with_deltas_covers_the_rule_that_merges_them(tmp_path):
    """Two parts without ties of their own have ties together, which the seed orders."""
    hashes, orders = set(), set()
    for seed in range(6):
        (tmp_path / str(seed)).mkdir()
        prepare_log(log_of([NOW]), tmp_path / str(seed), seed=seed)
        more = log_of([NOW]).with_columns(item=pl.lit("j"))
        hashes.add(append_log(more, tmp_path / str(seed))["content_hash"])
        orders.add(tuple(open_dataset(tmp_path / str(seed) / "data").histories.ids.tolist()))
    assert len(orders) == 2 and len(hashes) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({}, {}),
        ({"at": [3, 1, 2] * 20}, {"order_column": "at"}),
        ({"at": [0] * 60}, {"order_column": "at"}),
        ({"timestamp": [f"{NOW + n // 2}.{n % 7}" for n in range(60)]}, {}),
        ({"user": ["", "u.0", "None"] * 20}, {"skip_invalid": True, "max_invalid_share": 0.5}),
        ({"user": ["7.0", "7", "8"] * 20}, {"id_type": "int", "drop": ["item=3$"]}),
        ({"kind": ["a", "b", "c"] * 20}, {"type_column": "kind", "keep": ["kind=[ab]"]}),
    ],
)
def test_beam_writes_the_same_dataset_json(tmp_path, columns, options):
    pytest.importorskip("apache_beam", reason="needs pip install 'rec2pm_jax[beam]'")
    from rec2pm_jax.data.prepare.beam import prepare_with_beam

    base = {"user": ["u", "v", "w"] * 20, "item": [f"i{n % 9}" for n in range(60)]}
    times = {"timestamp": [NOW + n // 6 for n in range(60)]}
    log = pl.DataFrame(base | times | columns)
    (tmp_path / "log").mkdir()
    for n in range(3):
        log[20 * n : 20 * n + 20].write_csv(tmp_path / "log" / f"{n}.csv")
    made = {
        name: PrepareOptions(
            "interactions", str(tmp_path / name), str(tmp_path / "log"), progress=False, **options
        )
        for name in ("local", "beam")
    }
    prepare(made["local"])
    prepare_with_beam(made["beam"])
    infos = [(tmp_path / name / "dataset.json").read_text() for name in made]
    assert infos[0] == infos[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (f"a,A,{NOW}\na,B,{LATER}\n", "more than int32 holds"),
        (f"a,A,{NOW}\n,B,{NOW}\n", "an empty id.*1 such rows among 2"),
        ("a,A,20240531\n", "look like dates"),
        (f'a,5" disk,{NOW}\n', r"row 2: a quotation mark without its other half \(.*\)\.$"),
    ],
)
def test_beam_refuses_what_prepare_refuses(tmp_path, rows, message):
    pytest.importorskip("apache_beam", reason="needs pip install 'rec2pm_jax[beam]'")
    from rec2pm_jax.data.prepare.beam import prepare_with_beam

    (tmp_path / "log.csv").write_text("user,item,timestamp\n" + rows)
    for run in (prepare, prepare_with_beam):
        options = PrepareOptions(
            "interactions", str(tmp_path / "data"), str(tmp_path / "log.csv"), progress=False
        )
        with pytest.raises(UserError, match=message) as error:
            run(options)
        assert "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv"]


def test_a_compacted_dataset_has_the_metadata_of_one_log(tmp_path):
    log = log_of([NOW + n for n in range(10)])
    whole = prepare_log(log, tmp_path, name="whole")
    prepare_log(log[:5], tmp_path)
    append_log(log[5:], tmp_path)
    info = compact(str(tmp_path / "data"), progress=False)
    own = {"content_hash", "logs", "grown_from", "late_events"}
    assert {k: v for k, v in info.items() if k not in own} == {
        k: v for k, v in whole.items() if k not in own
    } | {"shards": info["shards"]}
    assert np.all(open_dataset(tmp_path / "data").histories.ids == range(1, 11))
