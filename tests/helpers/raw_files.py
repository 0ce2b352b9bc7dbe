"""Small files in exactly the layouts of the publishers of the registered datasets."""

from __future__ import annotations

import datetime
import gzip
import io
import json
import zipfile
from pathlib import Path

import polars as pl
import xlsxwriter

from tests.helpers.archives import make_movielens_zip

MERREC_TEXT = (
    "sequence_id session_id event_id product_id name brand_name c0_name c1_name c2_name "
    "item_condition_name size_name color shipper_name"
).split()
MERREC_NUMBERS = (
    "user_id item_id shipper_id sequence_length brand_id c0_id c1_id c2_id item_condition_id size_id"
).split()


def merrec(root: Path) -> Path:
    """Two monthly folders of one shard each."""
    rows = {  # month -> (user, item, product, event, brand, category, microseconds since midnight)
        "20230501": [
            (1, 101, "p1", "item_view", "Nike", "Shoes", 5_000_000),
            (2, 102, "p2", "item_like", None, "Games", 5_000_001),
        ],
        "20231001": [
            (1, 103, "p2", "buy_comp", None, "Games", 7_500_000),
            (1, 101, "p1", "item_view", "Nike", "Shoes", 7_400_000),
            (1, 104, None, "item_view", None, None, 8_000_000),
        ],
    }
    for month, events in rows.items():
        (root / month).mkdir(parents=True)
        start = datetime.datetime.strptime(month, "%Y%m%d").replace(tzinfo=datetime.UTC)
        shard = {name: [""] * len(events) for name in MERREC_TEXT}
        shard |= {name: [0] * len(events) for name in MERREC_NUMBERS}
        user, item, product, event, brand, category, time = zip(*events, strict=True)
        shard |= {"user_id": user, "item_id": item, "product_id": product, "event_id": event}
        shard |= {"brand_name": brand, "c2_name": category, "price": [9.5] * len(events)}
        shard["stime"] = [start + datetime.timedelta(microseconds=t) for t in time]
        pl.DataFrame(shard, strict=False).write_parquet(root / month / "000000000000.parquet")
    return root


KUAIRAND_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,"
    "tab\n"
)


def _exposure(user: int, video: int, time_ms: int, click: int, random: int = 0) -> str:
    return (
        f"{user},{video},20220421,400,{time_ms},{click},0,0,0,0,0,1,9000,104400,0,0,0,{random},1\n"
    )


def kuairand(root: Path, variant: str = "1k") -> Path:
    """KuaiRand-1K/data, or 27K with its logs in parts."""
    data = root / f"KuaiRand-{variant.upper()}" / "data"
    data.mkdir(parents=True)
    logs = {
        "standard_4_08_to_4_21": [(0, 7, 1_650_485_801_301, 1), (0, 8, 1_650_485_801_250, 1)],
        "standard_4_22_to_5_08": [(0, 7, 1_650_600_000_000, 0), (1, 7, 1_650_600_000_000, 1)],
    }
    parts = ["_part1", "_part2"] if variant == "27k" else [""]
    for name, rows in logs.items():
        for i, part in enumerate(parts):
            text = "".join(_exposure(*row) for row in rows[i :: len(parts)])
            (data / f"log_{name}_{variant}{part}.csv").write_text(KUAIRAND_HEADER + text)
    random = _exposure(1, 9, 1_650_700_000_000, 1, random=1)
    (data / f"log_random_4_22_to_5_08_{variant}.csv").write_text(KUAIRAND_HEADER + random)
    (data / f"video_features_basic_{variant}.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,"
        "server_width,server_height,music_id,music_type,tag\n"
        '7,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989206467,4.0,"12,65"\n'
        "8,442,NORMAL,2020-07-08,ShortImport,1,,720,1280,989206467,4.0,\n"
    )
    (data / f"user_features_{variant}.csv").write_text(
        "user_id,user_active_degree\n0,full_active\n"
    )
    return root


def ebnerd(root: Path) -> Path:
    """A bundle: user 1 in both splits, user 2 in the second only, whose history covers week one."""

    def day(n: int) -> datetime.datetime:
        return datetime.datetime(2023, 4, 27, 7) + datetime.timedelta(days=n)

    def history(split: str, rows: list) -> None:
        (root / split).mkdir(parents=True)
        user, articles, days = zip(*rows, strict=True)
        pl.DataFrame(
            {
                "user_id": pl.Series(user, dtype=pl.UInt32),
                "impression_time_fixed": [[day(n) for n in d] for d in days],
                "scroll_percentage_fixed": [[None] * len(d) for d in days],
                "article_id_fixed": pl.Series(articles, dtype=pl.List(pl.Int32)),
                "read_time_fixed": [[1.0] * len(d) for d in days],
            }
        ).write_parquet(root / split / "history.parquet")

    def behaviors(split: str, rows: list) -> None:
        user, clicked, days = zip(*rows, strict=True)
        pl.DataFrame(
            {
                "impression_id": pl.Series(range(len(rows)), dtype=pl.UInt32),
                "article_id": pl.Series([None] * len(rows), dtype=pl.Int32),
                "impression_time": [day(n) for n in days],
                "article_ids_inview": pl.Series(
                    [[11, 12, 13]] * len(rows), dtype=pl.List(pl.Int32)
                ),
                "article_ids_clicked": pl.Series(clicked, dtype=pl.List(pl.Int32)),
                "user_id": pl.Series(user, dtype=pl.UInt32),
            }
        ).write_parquet(root / split / "behaviors.parquet")

    history("train", [(1, [11, 12], [1, 2])])
    behaviors("train", [(1, [13], 22), (1, [], 23)])
    history("validation", [(1, [12, 13], [9, 22]), (2, [11], [22])])
    behaviors("validation", [(1, [11, 12], 29), (2, [13], 30)])
    pl.DataFrame(
        {"article_id": [11, 12], "title": ["Kongen", "Æblet"], "category_str": ["nyheder", "mad"]},
        schema_overrides={"article_id": pl.Int32},
    ).write_parquet(root / "articles.parquet")
    return root


AMAZON_ROWS = [("AE2", "B01", 1_441_260_345_000), ("AE1", "B02", 1_588_687_728_923)]


def amazon(root: Path, raw: bool) -> Path:
    """Software.csv.gz or .jsonl.gz, and the metadata."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / ("Software.jsonl.gz" if raw else "Software.csv.gz")
    with gzip.open(path, "wt", encoding="utf-8") as file:
        if not raw:
            file.write("user_id,parent_asin,rating,timestamp\n")
        for user, item, time in AMAZON_ROWS:
            review = {
                "rating": 5.0,
                "title": "ünicode",
                "text": "two\nlines",
                "images": [{"small_image_url": "https://example.com/1.jpg"}],
                "asin": "X" + item,
                "parent_asin": item,
                "user_id": user,
                "timestamp": time,
                "helpful_vote": 0,
                "verified_purchase": True,
            }
            file.write((json.dumps(review) if raw else f"{user},{item},5.0,{time}") + "\n")
    with gzip.open(root / "meta_Software.jsonl.gz", "wt", encoding="utf-8") as file:
        item = {"main_category": "Software", "title": "Schach, für Kinder", "average_rating": 4.1}
        item |= {
            "price": None,
            "details": {"Brand": "x"},
            "parent_asin": "B01",
            "bought_together": None,
        }
        file.write(json.dumps(item) + "\n")
    return path


def yambda(root: Path, kind: str) -> Path:
    """listens, likes, multi_event (flat) or sequential (multi_event as lists)."""
    root.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(
        {
            "uid": [100, 100, 100, 200, 200],
            "timestamp": [39_420, 39_420, 41_000, 106_910, 146_130],
            "item_id": [8326270, 1441281, 8326270, 286361, 286361],
            "is_organic": [0, 0, 1, 1, 1],
            "event_type": ["listen", "listen", "like", "listen", "unlike"],
            "played_ratio_pct": [95, 49, None, 130, None],
            "track_length_seconds": [175, 165, None, 200, None],
        },
        schema={
            "uid": pl.UInt32,
            "timestamp": pl.UInt32,
            "item_id": pl.UInt32,
            "is_organic": pl.UInt8,
            "event_type": pl.Enum(["dislike", "like", "listen", "undislike", "unlike"]),
            "played_ratio_pct": pl.UInt16,
            "track_length_seconds": pl.UInt32,
        },
    )
    if kind == "listens":
        frame = frame.filter(pl.col("event_type") == "listen").drop("event_type")
    elif kind == "likes":
        frame = frame.filter(pl.col("event_type") == "like")[:, :4]
    elif kind == "sequential":
        frame = frame.group_by("uid", maintain_order=True).agg(pl.all())
    path = root / f"{'multi_event' if kind == 'sequential' else kind}.parquet"
    frame.write_parquet(path)
    return path


def taobao(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "UserBehavior.csv").write_text(
        "1,2268318,2520377,pv,1511544070\n1,2333346,2520771,fav,1511561733\n"
        "1,2268318,2520377,buy,1511544071\n2,2333346,2520771,cart,1512316799\n"
        "2,2333346,2520771,pv,1512316800\n2,2333346,2520771,pv,-2134949234\n"
    )
    return root


LASTFM_LINES = [
    "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFuck Me Im Famous (Ibiza 2007)",
    'user_000001\t2009-05-04T13:54:10Z\ta7f7df4a\t坂本龍一\t\tComposition 0919 "Live',
    "user_000001\t2009-05-04T13:52:04Z\ta7f7df4a\t坂本龍一\tmbid\tMc2 (Live_2009_4_15)",
    "user_000002\t2013-09-29T18:32:04Z\ta7f7df4a\t坂本龍一\tmbid\tMc2 (Live_2009_4_15)",
    "user_000002\t2009-05-04T13:52:04Z\ta7f7df4a\tone field\ttoo\tmany\there",
    "user_000002\t2009-05-04",
    "user_000002\t2009-05-04T13:52:04Z\ta7f7df4a\tNo Track\t\t",
    "user_000002\t2009-05-04T13:52:05Z\tf1b1cf71\tDeep Dish\t\tFuck Me Im Famous (Ibiza 2007)",
]


def lastfm(root: Path) -> Path:
    folder = root / "lastfm-dataset-1K"
    folder.mkdir(parents=True)
    name = "userid-timestamp-artid-artname-traid-traname.tsv"
    (folder / name).write_text("\n".join(LASTFM_LINES) + "\n", encoding="utf-8")
    (folder / "userid-profile.tsv").write_text("#id\tgender\tage\tcountry\tregistered\n")
    return root


def movielens(root: Path, variant: str = "25m") -> Path:
    """What an archive of GroupLens unpacks to."""
    archive = zipfile.ZipFile(io.BytesIO(make_movielens_zip(f"ml-{variant}.zip")))
    archive.extractall(root)
    return root / f"ml-{variant}"


def complete_journey(root: Path) -> Path:
    """The two tables that are read; the second product has no type."""
    root.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        {
            "household_id": [1, 1, 2],
            "store_id": [330, 330, 331],
            "basket_id": [31198570044, 31198570044, 31198570047],
            "product_id": [1095275, 9878513, 1095275],
            "quantity": [1, 1, 2],
            "transaction_timestamp": [datetime.datetime(2017, 1, 1, 6 + h) for h in (0, 0, 3)],
        }
    ).write_parquet(root / "transactions.parquet")
    pl.DataFrame(
        {
            "product_id": [1095275, 9878513],
            "department": ["PASTRY", "GROCERY"],
            "product_category": ["ROLLS", None],
            "product_type": ["ROLLS: BAGELS", None],
            "package_size": ["4 OZ", None],
        }
    ).write_parquet(root / "products.parquet")
    return root


RETAIL_COLUMNS = (
    *("Invoice", "StockCode", "Description", "Quantity"),
    *("InvoiceDate", "Price", "Customer ID", "Country"),
)
# By sheet. The second sheet repeats the last line of the first.
RETAIL_LINES = {
    "Year 2009-2010": [
        (489434, 85048, "CHRISTMAS LIGHTS", 12, (2009, 12, 1, 7, 45), 6.95, 13085),
        (489434, "79323P", "PINK CHERRY LIGHTS", 12, (2009, 12, 1, 7, 45), 6.75, 13085),
        (489434, "79323P", "pink £ lights", 1, (2009, 12, 1, 7, 45), 6.75, 13085),
        ("C489449", 22087, "PAPER BUNTING", -12, (2009, 12, 1, 10, 33), 2.95, 16321),
        (489464, 21733, "85123a mixed", -96, (2009, 12, 1, 10, 52), 0, None),
        (536365, "85123A", "HANGING HEART", 6, (2010, 12, 1, 8, 26), 2.55, 17850),
    ],
    "Year 2010-2011": [
        (536365, "85123A", "HANGING HEART", 6, (2010, 12, 1, 8, 26), 2.55, 17850),
        (536366, "79323P", "PINK CHERRY LIGHTS", 6, (2010, 12, 1, 8, 28), 1.85, 17850),
    ],
}


def online_retail(root: Path) -> Path:
    """The publisher's workbook."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / "online_retail_II.xlsx"
    with xlsxwriter.Workbook(path) as book:
        date = book.add_format({"num_format": "yyyy-mm-dd hh:mm:ss"})
        for name, lines in RETAIL_LINES.items():
            sheet = book.add_worksheet(name)
            sheet.write_row(0, 0, RETAIL_COLUMNS)
            for row, line in enumerate(lines, 1):
                sheet.write_row(row, 0, (*line[:4], None, *line[5:], "United Kingdom"))
                sheet.write_datetime(row, 4, datetime.datetime(*line[4]), date)
    return path


def online_retail_csv(root: Path, first_edition: bool = False) -> Path:
    """A CSV copy: with ISO times, or as copies of the first edition (names, dates, latin-1)."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [line for sheet in RETAIL_LINES.values() for line in sheet]
    columns = dict(zip(RETAIL_COLUMNS, zip(*lines, strict=True), strict=False))
    columns["InvoiceDate"] = [
        f"{t[1]}/{t[2]}/{t[0]} {t[3]}:{t[4]:02}" if first_edition else datetime.datetime(*t)
        for t in columns["InvoiceDate"]
    ]
    columns["Customer ID"] = [c if c is None else float(c) for c in columns["Customer ID"]]
    for name in ("Invoice", "StockCode"):
        columns[name] = [str(value) for value in columns[name]]
    frame = pl.DataFrame(columns)
    if first_edition:
        names = {"Invoice": "InvoiceNo", "Price": "UnitPrice", "Customer ID": "CustomerID"}
        frame = frame.rename(names)
    text = frame.write_csv(datetime_format="%Y-%m-%d %H:%M:%S")
    path = root / "online_retail.csv"
    path.write_bytes(text.encode("latin-1" if first_edition else "utf-8"))
    return path


# For every source that reads a publisher's files: a function that makes them and returns --input.
LAYOUTS = {
    "merrec": merrec,
    "movielens": movielens,
    "kuairand": kuairand,
    "ebnerd": ebnerd,
    "amazon": lambda root: amazon(root, raw=True),
    "yambda": lambda root: yambda(root, "multi_event"),
    "taobao": taobao,
    "lastfm": lastfm,
    "complete_journey": complete_journey,
    "online_retail": online_retail,
}
