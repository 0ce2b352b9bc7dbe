"""Errors in publishers' text files name the file and the row."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.errors import UserError
from tests.helpers import raw_files


def run(source: str, directory: Path, file: Path) -> None:
    options = {"input": str(file), "progress": False}
    prepare(PrepareOptions(source, str(directory / "out"), **options))


def edit(path: Path, row: int, change) -> None:
    """Change the bytes of one row of a text file, plain or gzipped."""
    data = path.read_bytes()
    lines = (gzip.decompress(data) if path.suffix == ".gz" else data).split(b"\n")
    lines[row - 1] = change(lines[row - 1])
    data = b"\n".join(lines)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def with_bad_byte(line: bytes) -> bytes:
    return line[:-2] + b"\xe9" + line[-2:]


def replaced(old: bytes, new: bytes):
    return lambda line: line.replace(old, new)


TEXT_FILES = {
    "amazon": ("Software.csv.gz", 3, b"1588687728923", b"AE1"),
    "amazon raw": ("Software.jsonl.gz", 2, b"1588687728923", b"AE1"),
    "kuairand": ("log_standard_4_22_to_5_08_1k.csv", 3, b"1650600000000", None),
    "taobao": ("UserBehavior.csv", 3, b"1511544071", None),
}


def write_raw(source: str, directory: Path) -> Path:
    """Write a source's files; return the one to damage."""
    name = source.split()[0]
    options = {"raw": "raw" in source} if name == "amazon" else {}
    root = getattr(raw_files, name)(directory / "raw", **options)
    return next(root.rglob(TEXT_FILES[source][0])) if root.is_dir() else root


def test_a_carriage_return_within_a_row_is_one_clear_line(tmp_path):
    file = write_raw("taobao", tmp_path)
    edit(file, 3, replaced(b"1511544071", b"15\r11"))
    with pytest.raises(UserError, match="UserBehavior.csv, row 3: new-line character seen"):
        run("taobao", tmp_path, file)


@pytest.mark.parametrize("source", TEXT_FILES)
def test_errors_in_text_files_name_the_file_and_the_row(tmp_path, source):
    name, row, time, user = TEXT_FILES[source]
    cases = [
        (with_bad_byte, "not in UTF-8"),
        (replaced(time, b'"12x"' if "raw" in source else b"12x"), "12x"),
        (replaced(time, b"-5"), "-5"),
    ]
    if user:
        cases.append((replaced(user, b""), 'column "user_id": no value'))
    for number, (change, message) in enumerate(cases):
        path = write_raw(source, tmp_path / str(number))
        edit(path, row, change)
        if source == "taobao" and message == "-5":
            continue  # outside of the nine days, which is dropped
        given = path if source.startswith("amazon") else tmp_path / str(number) / "raw"
        with pytest.raises(UserError) as refused:
            run(source.split()[0], tmp_path / str(number), given)
        error = str(refused.value)
        assert f"{name}, row {row}" in error and message in error, (message, error)


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = raw_files.amazon(tmp_path / "raw", raw=True)
    edit(path, 2, lambda line: line[:-3])
    with pytest.raises(UserError, match="Software.jsonl.gz, row 2: no JSON"):
        run("amazon", tmp_path, path)


def test_lastfm_is_in_utf_8(tmp_path):
    root = raw_files.lastfm(tmp_path / "raw")
    [path] = root.rglob("userid-timestamp-*.tsv")
    edit(path, 3, with_bad_byte)
    with pytest.raises(UserError, match="traname.tsv, row 3: the text is not in UTF-8"):
        run("lastfm", tmp_path, root)


def test_errors_in_tables_beside_the_log_name_the_row(tmp_path):
    path = raw_files.amazon(tmp_path / "raw", raw=False)
    edit(path.with_name("meta_Software.jsonl.gz"), 1, with_bad_byte)
    with pytest.raises(UserError, match="meta_Software.jsonl.gz, row 1: "):
        run("amazon", tmp_path, path)
    path = raw_files.amazon(tmp_path / "1", raw=False)
    edit(path, 2, replaced(b"AE2", b"AE2,more,and,more"))
    with pytest.raises(UserError, match="Software.csv.gz, row 2: 7 fields, but 4 are expected"):
        run("amazon", tmp_path / "1", path)
    root = raw_files.kuairand(tmp_path / "other")
    edit(next(root.rglob("video_features_basic_1k.csv")), 3, replaced(b"8,442", b"x,442"))
    with pytest.raises(
        UserError, match='basic_1k.csv, row 3, column "video_id": not a whole number'
    ):
        run("kuairand", tmp_path / "2", root)
