"""Dialects of CSV and JSON-lines, encodings, and errors that name the row."""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import polars as pl
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, prepare, summary
from rec2pm_jax.errors import UserError

NOON = 1_717_156_800
HEADER = "user,item,timestamp\n"


def run(
    directory: Path, text: str | bytes, name: str = "log.csv", source="interactions", **options
):
    data = text if isinstance(text, bytes) else text.encode()
    (directory / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    info, _ = prepare(
        PrepareOptions(
            source, str(directory / "data"), str(directory / name), progress=False, **options
        )
    )
    return info, open_dataset(directory / "data")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", HEADER + "u,a,1\nu,b,x\n", 'row 3, column "timestamp"'),
        ("a.csv.gz", HEADER + "u,a,1\nu,b,x\n", 'row 3, column "timestamp"'),
        ("a.tsv.gz", "user\titem\ttimestamp\nu\ta\t1\nu\tb\tx\n", "row 3"),
        (
            "a.jsonl",
            '{"user":1,"item":2,"timestamp":3}\n{"user":1,"item":2,"timestamp":"x"}',
            "row 2",
        ),
        (
            "a.csv",
            HEADER + 'u,5" disk,1\nu,b,2\n',
            "row 2: a quotation mark without its other half",
        ),
        ("a.csv", HEADER + 'u,a,1\nu,"5 disk,1\nu,b,2\n', "row 3: .*quotation mark"),
        ("a.csv", HEADER + 'u,a,1\nu,"5" disk,1\nu,b,2\n', "row 3: .*quotation mark"),
        ("a.csv", HEADER + 'u,"x\ny",1\nu,b,2,3\n', "row 4: 4 fields, but the header has 3"),
        ("a.csv.gz", HEADER + "u,a,1\nu,b,2,3\n", "row 3: 4 fields, but the header has 3"),
        ("a.csv", (HEADER + "u,a,1\nu,é,2\n").encode("latin-1"), "row 3: the text is not in UTF-8"),
        ("a.csv", (HEADER + "u,a,1\n").encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a.csv", "usér,item\n".encode("latin-1"), "row 1: the text is not in UTF-8"),
        ("a.jsonl", '{"user":1,"item":2,"timestamp":3}\n{"user":1,\n', "row 2: no JSON"),
        ("a.jsonl", '{"user":1,"item":2,"timestamp":3}\n[1]\n', "row 2: expected a JSON object"),
        (
            "a.jsonl",
            b'{"user":1,"item":2,"timestamp":3}\n{"user":"\xe9"}\n',
            "row 2: .*not in UTF-8",
        ),
        (
            "a.jsonl",
            '{"user":"a","item":"b","timestamp":3}\n{"user":{"x":1},"item":"b"}',
            "nested id",
        ),
        (
            "a.csv",
            "user,item,user,timestamp\nu,a,v,1\n",
            r"2 columns named user \(--user_column=user\)",
        ),
        (
            "a.csv",
            "user:item:timestamp\nu:a:1\n",
            "no --user_column=user; its columns are user:item",
        ),
        ("a.csv", "uid;sku;when\nu;a;1\n", "seem to be separated by ';'; see --separator"),
        (
            "a.csv",
            "user;item;timestamp\nu;a;1600000000,25\n",
            "row 2.*decimal comma; write a decimal",
        ),
        ("a.csv", HEADER + "u,a,20240531\nu,b,20240601\n", "look like dates.*--time_format=%Y%m%d"),
    ],
)
def test_errors_name_the_row(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, text, name)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_separator_is_detected_and_stated(tmp_path, separator):
    text = (HEADER + "u,a,1\nu,b,2\n").replace(",", separator)
    info, _ = run(tmp_path, text)
    assert info["events"] == 2
    assert f"separator: {'tab' if separator == chr(9) else repr(separator)} (det" in summary(info)


def test_a_separator_can_be_given(tmp_path):
    info, dataset = run(tmp_path, "user:item:timestamp\nu:a,b:1\n", separator=":")
    assert dataset.items.raw_ids[1:] == ["a,b"] and info["notes"]["separator"] == "':' (as stated)"
    with pytest.raises(UserError, match="no --user_column=user; .* separated by ','; see --sep"):
        run(tmp_path, HEADER + "u,a,1\n", separator=";", overwrite=True)
    with pytest.raises(UserError, match="is not one character"):
        run(tmp_path, HEADER, separator="::")


def test_byte_order_marks_and_line_ends(tmp_path):
    text = "\ufeff" + (HEADER + "u,a\u0085b,1\nu,b\u2028,2\n").replace("\n", "\r\n")
    _, dataset = run(tmp_path, text)
    assert sorted(dataset.items.raw_ids[1:]) == ["a\u0085b", "b\u2028"]


def test_bytes_that_are_no_utf_8_do_no_harm_in_other_columns(tmp_path):
    text = "user,item,name,timestamp\nu,a,café,1\nu,b\ufffd,£5,2\n"
    _, dataset = run(tmp_path, text)  # U+FFFD itself is a character like others
    assert sorted(dataset.items.raw_ids[1:]) == ["a", "b\ufffd"]
    latin = text.replace("\ufffd", "").encode("latin-1")
    _, dataset = run(tmp_path, latin, overwrite=True)
    assert sorted(dataset.items.raw_ids[1:]) == ["a", "b"]
    with pytest.raises(UserError, match="row 2: the text is not in UTF-8"):
        run(tmp_path, latin, overwrite=True, item_column="name")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_movielens_is_read_in_utf_8_or_latin_1(tmp_path, encoding):
    """The 10M archive is in UTF-8, where the second byte of an Å is a line break of Unicode."""
    (tmp_path / "movies.dat").write_bytes("1::Ådalen 31 (1969)::Drama\n".encode(encoding))
    _, dataset = run(tmp_path, "7::1::5::838985046\n", "ratings.dat", "movielens")
    assert dataset.items.titles[1] == "Ådalen 31 (1969)"


def test_rows_of_movielens_errors(tmp_path):
    header = "userId,movieId,rating,timestamp\n"
    for text, message in {
        header + "1,2,3,4\n1,2,3,x\n": 'ratings.csv, row 3, column "timestamp"',
        header + "1,2,3,4\n1,x,3,4\n": 'ratings.csv, row 3, column "movieId"',
        header + "1,2,3,4\n1,2,3,4,5\n": "ratings.csv, row 3: 5 fields",
    }.items():
        with pytest.raises(UserError, match=message):
            run(tmp_path, text, "ratings.csv", "movielens")
    with pytest.raises(UserError, match='ratings.dat, row 2, column "Timestamp"'):
        run(tmp_path, "1::2::3::4\n1::2::3::x\n", "ratings.dat", "movielens")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,a,b\n,c,d\n")
    with pytest.raises(UserError, match='movies.csv, row 3, column "movieId"'):
        run(tmp_path, header + "1,2,3,4\n", "ratings.csv", "movielens")


def test_a_json_key_may_come_late(tmp_path):
    early = '{"user":1,"item":2,"timestamp":5}\n' * 1500
    info, _ = run(
        tmp_path,
        early + '{"user":1,"item":2,"timestamp":5,"kind":"x"}\n',
        "a.jsonl",
        type_column="kind",
        skip_invalid=True,
        max_invalid_share=1.0,
    )
    assert info["events"] == 1 and info["dropped_rows"]["invalid kind"] == 1500
    with pytest.raises(UserError, match="no --type_column=kid.*Did you mean"):
        run(tmp_path, early + '{"user":1,"kind":"x"}\n', "a.jsonl", type_column="kid")


def test_ids_that_end_in_point_zero_are_reported(tmp_path):
    text = HEADER + f"17850.0,a,{NOON}\n17850,b,{NOON}\n9.0,85123A,{NOON}\n"
    info, dataset = run(tmp_path, text)
    assert dataset.num_users == 3
    assert "ids: 2 rows have a user that ends in .0 (--id_type=int reads" in summary(info)
    info, dataset = run(tmp_path, text, id_type="int", overwrite=True)
    assert [dataset.user(i) for i in range(2)] == ["17850", "9"]
    assert dataset.items.id_of("85123A") and ".0" not in summary(info)
    with pytest.raises(UserError, match="--id_type=float is unknown"):
        run(tmp_path, text, id_type="float", overwrite=True)


def test_float_columns_are_ids_where_they_are_whole(tmp_path):
    log = pl.DataFrame({"user": [17850.0, 2.0], "item": ["a", "b"], "timestamp": [NOON, NOON]})
    log.write_parquet(tmp_path / "log.parquet")
    _, dataset = run(tmp_path, (tmp_path / "log.parquet").read_bytes(), "log.parquet")
    assert dataset.user_index("17850") is not None


def test_texts_that_mean_nothing_are_reported_as_ids(tmp_path):
    rows = "".join(f"{user},a,{NOON}\n" for user in ("nan", "NULL", "None", "v"))
    info, dataset = run(tmp_path, HEADER + rows)
    assert dataset.num_users == 4
    assert "ids: 3 rows have the user nan, null or none, which is taken as an id" in summary(info)


def test_fractions_of_a_second(tmp_path):
    rows = "".join(
        f"u,{item},{NOON}{part}\n" for item, part in zip("cab", (".75", "", ".5"), strict=True)
    )
    info, dataset = run(tmp_path, HEADER + rows)
    assert [dataset.items.raw_ids[i] for i in dataset[0].ids] == ["a", "b", "c"]
    assert info["order_key"] and dataset[0].times.tolist() == [0, 0, 0]


def test_formats_of_times(tmp_path):
    text = HEADER.replace(",", ";") + "u;a;5/31/2024 12:00\nu;b;5/31/2024 9:05\n"
    info, dataset = run(tmp_path, text, time_format="%m/%d/%Y %H:%M")
    assert dataset.time_origin == NOON - 10_500 and "%m/%d/%Y %H:%M (as stated)" in summary(info)
    with pytest.raises(UserError, match="row 2.*not written as --time_format=%d.%m.%Y"):
        run(tmp_path, text, time_format="%d.%m.%Y", overwrite=True)
    for time_format in ("%Q", "soon", "%"):
        with pytest.raises(UserError, match="no format of dates"):
            run(tmp_path, text, time_format=time_format, overwrite=True)
    with pytest.raises(UserError, match="not both"):
        run(tmp_path, text, time_format="%Y", time_unit="s", overwrite=True)


def test_one_wild_time_is_blamed_and_not_the_others(tmp_path):
    rows = "".join(f"u,i{n},{NOON + n}\n" for n in range(5))
    with pytest.raises(UserError, match=r"row 7.*beyond the year 5000.*1 such rows among 6"):
        run(tmp_path, HEADER + rows + "u,wild,253402300799\n")
    info, _ = run(
        tmp_path, HEADER + rows + "u,wild,253402300799\n", skip_invalid=True, max_invalid_share=0.2
    )
    assert info["events"] == 5 and info["notes"]["time_unit"] == "seconds (detected)"


@pytest.mark.parametrize("order", ["1", "1.0"])
def test_an_order_column_orders_equal_times_only(tmp_path, order):
    text = "user,item,timestamp,at\n"
    times = (f"{NOON}900", f"{NOON}100", f"{NOON}500", f"{NOON}500")
    for n, (item, time) in enumerate(zip("abcd", times, strict=True)):
        text += f"u,{item},{time},{order if n == 0 else 9 - n}\n"
    info, dataset = run(tmp_path, text, order_column="at")
    assert [dataset.items.raw_ids[i] for i in dataset[0].ids] == ["b", "d", "c", "a"]
    assert info["order_key"]


def test_nanoseconds_of_parquet_order_events(tmp_path):
    times = pl.Series([NOON * 10**9 + n for n in (3, 1, 2)]).cast(pl.Datetime("ns"))
    log = pl.DataFrame({"user": ["u"] * 3, "item": list("abc"), "timestamp": times})
    log.write_parquet(tmp_path / "log.parquet")
    _, dataset = run(tmp_path, (tmp_path / "log.parquet").read_bytes(), "log.parquet")
    assert [dataset.items.raw_ids[i] for i in dataset[0].ids] == ["b", "c", "a"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_are_no_patterns(tmp_path, suffix):
    """polars takes a path for a pattern, so a file log[1].csv would be another one, or none."""
    directory = tmp_path / "a[1]* {b,c}"
    directory.mkdir()
    log = pl.DataFrame({"user": ["u", "u", "v"], "item": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    write = {".csv": "write_csv", ".jsonl": "write_ndjson", ".parquet": "write_parquet"}[suffix]
    for name, rows in (
        ("log[1]", log),
        ("log1", log.head(1)),
        ("more?", log.with_columns(timestamp=9)),
    ):
        getattr(rows, write)(directory / f"{name}{suffix}")
    data = directory / "data[2]"
    options = PrepareOptions(
        "interactions",
        str(data),
        input=str(directory / f"log[1]{suffix}"),
        min_user_events=2,
        keep_dropped=True,
        progress=False,
    )
    info, _ = prepare(options)
    assert info["events"] == 2  # those of user v are kept aside
    append(dataclasses.replace(options, input=str(directory / f"more?{suffix}")))
    assert compact(str(data), "1GiB", False)["events"] == 6
    assert open_dataset(data).num_users == 2
