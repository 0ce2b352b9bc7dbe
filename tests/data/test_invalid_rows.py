"""Rows that cannot be used, and row filters: counted over all files, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, prepare, summary
from rec2pm_jax.errors import UserError

HEADER = "InvoiceNo,user,item,timestamp\n"
FILES = (
    "1,u,a,1600000000\nC2,,b,1600000001\n3,,c,1600000002\n4,v,,1600000003\n",
    "5,u,a,1600000004\n6,,a,1600000005\nC7,w,b,1600000006\n8,,,soon\n",
)


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log").mkdir()
    for number, rows in enumerate(FILES):
        (tmp_path / "log" / f"{number}.csv").write_text(HEADER + rows)
    return tmp_path


def options(directory: Path, **changes) -> PrepareOptions:
    return PrepareOptions(
        "interactions", str(directory / "data"), str(directory / "log"), progress=False, **changes
    )


def test_the_error_counts_the_rows_of_all_files(log):
    with pytest.raises(
        UserError,
        match=r'0.csv, row 3, column "user": an empty id \(None\); 4 such rows and 1 other invalid '
        r"rows among 8 in all files. .*--skip_invalid",
    ):
        prepare(options(log))
    assert not (log / "data").exists()


def test_invalid_rows_are_left_out_and_counted(log):
    with pytest.raises(UserError, match=r"share of 62.50%, and --max_invalid_share is 10.00%"):
        prepare(options(log, skip_invalid=True))
    info, _ = prepare(options(log, skip_invalid=True, max_invalid_share=0.7))
    assert info["dropped_rows"]["invalid user"] == 4
    assert info["dropped_rows"]["invalid item"] == 1
    assert info["events"] == 3 and "4 by invalid user" in summary(info)
    more = options(log, skip_invalid=True, max_invalid_share=0.7, force=True)
    assert append(more)["dropped_rows"]["invalid user"] == 8


def test_rows_keep_their_numbers_under_filters(log):
    """Rows that a filter leaves out are neither invalid nor counted among the rows."""
    with pytest.raises(UserError, match=r"0.csv, row 4, .*; 3 such rows and 1 other .* among 6"):
        prepare(options(log, drop=["InvoiceNo=^C"]))
    info, _ = prepare(options(log, drop=["InvoiceNo=^C"], keep=["user=^u$"]))
    assert info["events"] == 2
    assert info["dropped_rows"]["--drop=InvoiceNo=^C"] == 2
    assert info["dropped_rows"]["--keep=user=^u$"] == 4


def test_filters_of_one_column_are_all_applied(log):
    info, _ = prepare(options(log, drop=["InvoiceNo=^C", "InvoiceNo=[3468]"]))
    assert info["events"] == 2


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"drop": ["InvoiceNo"]}, "--drop=InvoiceNo: write COLUMN=REGEX"),
        ({"keep": ["InvoiceNo=("]}, r"--keep=InvoiceNo=\( is no regular expression"),
        ({"keep": ["Invoice=C"]}, 'no --keep=Invoice;.*Did you mean "InvoiceNo"'),
        ({"drop": ["InvoiceNo=."]}, "no events"),
        ({"max_invalid_share": 2.0}, "must be from 0 to 1"),
        ({"max_invalid_share": float("nan")}, "must be from 0 to 1"),
    ],
)
def test_filters_that_have_no_meaning(log, filters, message):
    with pytest.raises(UserError, match=message):
        prepare(options(log, skip_invalid=True, **filters))
