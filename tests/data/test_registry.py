"""Every registered dataset, read from files in its publisher's own layout."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.reading import log_files
from rec2pm_jax.data.sources import SOURCES, describe_sources
from rec2pm_jax.errors import UserError
from tests.helpers import raw_files


def run(source: str, directory, file="", **options):
    info, _ = prepare(
        PrepareOptions(source, str(directory / "out"), input=str(file), progress=False, **options)
    )
    return info, open_dataset(directory / "out")


def events(dataset) -> dict[str, list[tuple]]:
    """User -> (raw item, absolute seconds, event type) in order."""
    found = {}
    for index in range(dataset.num_users):
        user = dataset.sequence(index)
        types = [""] * len(user.ids)
        if user.types is not None:
            types = [dataset.event_types[t - 1] for t in user.types]
        items = [dataset.items.raw_ids[i] for i in user.ids]
        times = (user.times + dataset.time_origin).tolist()
        found[user.user] = list(zip(items, times, types, strict=True))
    return found


def title(dataset, raw: str) -> tuple[str, str | None]:
    index = dataset.items.id_of(raw)
    return dataset.items.titles[index], dataset.items.categories[index]


MAY, OCTOBER = 1_682_899_200, 1_696_118_400  # midnight of the first, UTC


def test_merrec(tmp_path):
    info, dataset = run("merrec", tmp_path, raw_files.merrec(tmp_path / "raw"))
    assert events(dataset) == {
        # Within one second the microseconds decide.
        "1": [
            ("p1", MAY + 5, "item_view"),
            ("p1", OCTOBER + 7, "item_view"),
            ("p2", OCTOBER + 7, "buy_comp"),
        ],
        "2": [("p2", MAY + 5, "item_like")],
    }
    assert info["dropped_rows"]["without_product_id"] == 1
    assert title(dataset, "p1") == ("Nike, Shoes", "Shoes")
    assert title(dataset, "p2") == ("Games", "Games")


def test_merrec_listings(tmp_path):
    _, dataset = run("merrec", tmp_path, raw_files.merrec(tmp_path / "raw"), item="listing")
    assert [item for item, *_ in events(dataset)["1"]] == ["101", "101", "103", "104"]


@pytest.mark.parametrize("variant", ["1k", "27k"])
def test_kuairand(tmp_path, variant):
    info, dataset = run("kuairand", tmp_path, raw_files.kuairand(tmp_path / "raw", variant))
    assert events(dataset) == {
        "0": [("8", 1_650_485_801, ""), ("7", 1_650_485_801, "")],  # 250 ms before 301 ms
        "1": [("7", 1_650_600_000, ""), ("9", 1_650_700_000, "")],
    }
    assert info["dropped_rows"]["not_clicked"] == 1
    assert title(dataset, "7") == ("7", "12,65" if variant == "1k" else None)


DAY = 86_400
START = 1_682_578_800  # 2023-04-27 07:00


def test_ebnerd_counts_no_click_twice(tmp_path):
    _, dataset = run("ebnerd", tmp_path, raw_files.ebnerd(tmp_path / "raw"))
    found = events(dataset)
    assert [(item, (time - START) // DAY) for item, time, _ in found["1"][:3]] == [
        ("11", 1),
        ("12", 2),
        ("13", 22),
    ]
    assert sorted(found["1"][3:]) == [("11", START + 29 * DAY, ""), ("12", START + 29 * DAY, "")]
    assert [item for item, *_ in found["2"]] == ["11", "13"]
    assert title(dataset, "12") == ("Æblet", "mad")


def test_ebnerd_one_split(tmp_path):
    bundle = raw_files.ebnerd(tmp_path / "raw")
    _, dataset = run("ebnerd", tmp_path, bundle / "validation")
    assert [item for item, *_ in events(dataset)["1"]][:2] == ["12", "13"]
    assert title(dataset, "12") == ("Æblet", "mad")


@pytest.mark.parametrize("raw", [False, True])
def test_amazon(tmp_path, raw):
    path = raw_files.amazon(tmp_path / "raw", raw)
    _, dataset = run("amazon", tmp_path, path if raw else path.parent)
    assert events(dataset) == {
        "AE1": [("B02", 1_588_687_728, "")],
        "AE2": [("B01", 1_441_260_345, "")],
    }
    assert title(dataset, "B01") == ("Schach, für Kinder", "Software")


@pytest.mark.parametrize("kind", ["listens", "likes", "multi_event", "sequential"])
def test_yambda(tmp_path, kind):
    info, dataset = run("yambda", tmp_path, raw_files.yambda(tmp_path / "raw", kind))
    listens = [("8326270", 39_420), ("286361", 106_910)]
    likes = [("8326270", 41_000)]
    expected = {"listens": listens, "likes": likes}.get(kind, listens + likes)
    found = [e for rows in events(dataset).values() for e in rows]
    assert sorted((item, time) for item, time, _ in found) == sorted(expected)
    if kind in ("multi_event", "sequential"):
        assert {kind for *_, kind in found} == {"listen", "like"}
        assert info["dropped_rows"]["taken_back_or_rejected"] == 1
    if kind != "likes":
        assert info["dropped_rows"]["played_less_than_50_percent"] == 1
    assert "not published" in info["notes"]["time_origin"]


def test_taobao(tmp_path):
    info, dataset = run("taobao", tmp_path, raw_files.taobao(tmp_path / "raw"))
    assert events(dataset) == {
        "1": [
            ("2268318", 1_511_544_070, "pv"),
            ("2268318", 1_511_544_071, "buy"),
            ("2333346", 1_511_561_733, "fav"),
        ],
        "2": [("2333346", 1_512_316_799, "cart")],
    }
    assert info["dropped_rows"]["outside_of_the_nine_days"] == 2
    assert title(dataset, "2333346")[1] == "2520771"


@pytest.mark.parametrize("level", ["track", "artist"])
def test_lastfm(tmp_path, level):
    info, dataset = run("lastfm", tmp_path, raw_files.lastfm(tmp_path / "raw"), item=level)
    first = [item for item, *_ in events(dataset)["user_000001"]]
    if level == "artist":
        assert first == ["坂本龍一", "坂本龍一", "Deep Dish"]
    else:
        assert first == [
            "坂本龍一 - Mc2 (Live_2009_4_15)",
            '坂本龍一 - Composition 0919 "Live',
            "Deep Dish - Fuck Me Im Famous (Ibiza 2007)",
        ]
        assert title(dataset, first[0]) == (first[0], "坂本龍一")
    dropped = info["dropped_rows"]
    assert (dropped["malformed"], dropped["after_june_2009"]) == (2, 1)
    assert dropped["without_a_name"] == (level == "track")
    assert events(dataset)["user_000002"][-1][1] == 1_241_445_125


def test_movielens_directories_keep_the_order_of_ties_across_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "BATCH", 7)
    rows = "".join(f"7,{movie},0.5,20\n" for movie in range(40, 0, -1))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + rows)
    _, dataset = run("movielens", tmp_path, tmp_path)
    found = [int(item) for item, *_ in events(dataset)["7"]]
    assert found == list(range(40, 0, -1))


def test_movielens_rows_that_cannot_be_read(tmp_path):
    text = "userId,movieId,rating,timestamp\n7,5,0.5,20\n7,six,0.5,20\n"
    (tmp_path / "ratings.csv").write_text(text)
    with pytest.raises(UserError, match="ratings.csv, row 3, .*not a whole number .*six"):
        run("movielens", tmp_path, tmp_path)


RETAIL = {
    "13085": {("85048", 1_259_653_500, ""), ("79323P", 1_259_653_500, "")},
    "17850": {("85123A", 1_291_191_960, ""), ("79323P", 1_291_192_080, "")},
}


@pytest.mark.parametrize(
    "make",
    [
        raw_files.online_retail,
        raw_files.online_retail_csv,
        lambda root: raw_files.online_retail_csv(root, first_edition=True),
    ],
)
def test_online_retail_reads_the_workbook_and_its_copies_alike(tmp_path, make):
    info, dataset = run("online_retail", tmp_path, make(tmp_path / "raw"))
    assert {user: set(found) for user, found in events(dataset).items()} == RETAIL
    assert info["dropped_rows"] == {
        "cancelled": 1,
        "without_customer": 1,
        "repeated_in_invoice": 2,  # one in an invoice, one in both sheets
        "min_item_count": 0,
        "min_user_events": 0,
    }
    assert title(dataset, "79323P") == ("PINK CHERRY LIGHTS", None)
    assert info["ties"]["rule"] == "shuffle" and info["has_times"]


def test_online_retail_prepared_events(tmp_path):
    frame = pl.DataFrame(
        {"user_id": [7, 7], "item_id": ["b", "a"], "timestamp": [1_259_653_500, 1_259_653_440]}
    )
    frame.write_parquet(tmp_path / "prepared.parquet")
    _, dataset = run("online_retail", tmp_path, tmp_path / "prepared.parquet")
    assert events(dataset) == {"7": [("a", 1_259_653_440, ""), ("b", 1_259_653_500, "")]}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("StockCode", "Stock", 'online_retail.csv has no column "StockCode"; its columns are'),
        ("Customer ID", "Client", 'has no column "Customer ID or CustomerID"'),
        ("2009-12-01 10:33:00", "soon", 'row 5, column "InvoiceDate": .*soon'),
        ("489434,85048", ",85048", 'row 2, column "Invoice": an empty id'),
    ],
)
def test_online_retail_names_what_is_wrong(tmp_path, old, new, message):
    path = raw_files.online_retail_csv(tmp_path / "raw")
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        run("online_retail", tmp_path, path)


def test_online_retail_without_the_package_that_reads_workbooks(tmp_path, monkeypatch):
    path = raw_files.online_retail(tmp_path / "raw")
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(UserError, match=r"pip install 'rec2pm_jax\[excel\]'.*CSV copy"):
        run("online_retail", tmp_path, path)


def test_online_retail_bad_workbook_and_folder(tmp_path):
    path = raw_files.online_retail(tmp_path / "raw")
    raw_files.online_retail_csv(tmp_path / "raw")
    with pytest.raises(UserError, match="online_retail.csv, online_retail_II.xlsx; give one"):
        run("online_retail", tmp_path, path.parent)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="online_retail_II.xlsx cannot be read"):
        run("online_retail", tmp_path, path)


@pytest.mark.parametrize("source", [s for s in SOURCES.values() if s.files])
def test_missing_files_say_what_where_and_under_which_licence(tmp_path, source):
    (tmp_path / "empty").mkdir()
    for given in ("", str(tmp_path / "nowhere"), str(tmp_path / "empty")):
        if not given and source.optional_input:
            continue
        with pytest.raises(UserError) as error:
            list(source(PrepareOptions(source.name, "out", input=given)).frames())
        text = str(error.value)
        if source.name == "complete_journey" and given.endswith("empty"):
            assert "transactions.parquet does not exist" in text
            continue
        assert source.licence in text and source.files.split(",")[0] in text
        assert (source.by_hand or source.page) in text
        assert ("--download_dir" in text) == (source.downloads is not None)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("merrec", {"item": "prodct"}, 'Did you mean "product"'),
        ("lastfm", {"item": "song"}, "choose one of track, artist"),
        ("taobao", {"variant": "1k"}, "taobao has no variants"),
        ("movielens", {"variant": "1m"}, "leave it out, or --input"),
    ],
)
def test_bad_options(tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        run(source, tmp_path, tmp_path, **options)


def test_unknown_variants_name_the_nearest(tmp_path):
    with pytest.raises(UserError, match='Did you mean "5core/Video_Games"'):
        run("amazon", tmp_path, variant="5core/VideoGames", download_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.drop("uid"), 'no column "uid"'),
        (lambda f: f.with_columns(uid=pl.lit(None, pl.UInt32)), "rows with no user"),
        (
            lambda f: f.with_columns(timestamp=pl.col("timestamp").cast(pl.Int64) * 10**9),
            "a timestamp beyond the year 5000",
        ),
    ],
)
def test_rows_that_cannot_be_events_are_refused(tmp_path, change, message):
    path = raw_files.yambda(tmp_path / "raw", "listens")
    change(pl.read_parquet(path)).write_parquet(path)
    with pytest.raises(UserError, match=message):
        run("yambda", tmp_path, path)


def test_damaged_files_are_named(tmp_path):
    path = raw_files.amazon(tmp_path / "raw", raw=False)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="Software.csv.gz cannot be read"):
        run("amazon", tmp_path, path)


def test_the_documentation_has_the_command_of_every_source():
    page = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for source in SOURCES.values():
        flags = f"--source={source.name} {source.example}".strip()
        assert flags in " ".join(page.replace("\\\n", " ").split()), flags


def test_the_listing_names_every_source_its_licence_and_page():
    text = describe_sources()
    for source in SOURCES.values():
        assert f"--source={source.name}" in text
        assert source.licence in text and source.page in text
