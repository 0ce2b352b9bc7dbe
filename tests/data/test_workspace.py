"""Preparations that are killed, fail, or run twice at once."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import encode as encode_stage
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.prepare.column_files import ColumnFiles
from rec2pm_jax.data.prepare.identity import make_identity
from rec2pm_jax.data.prepare.workspace import open_workspace
from rec2pm_jax.data.sources.synthetic_log import frames
from rec2pm_jax.errors import UserError
from tests.helpers.data import prepare_frames, prepare_log, random_log

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """A kill; not an Exception, so that no clean-up code runs."""


def test_a_killed_start_resumes_from_its_finished_stages(tmp_path, monkeypatch):
    expected = prepare_log(random_log(), tmp_path, name="clean", max_memory="50kB")
    encode_log, made = encode_stage.encode_log, []

    def counting(*args):
        made.append("log")
        encode_log(*args)

    monkeypatch.setattr(encode_stage, "encode_log", counting)
    append, budget = ColumnFiles.append, [30]

    def dying(self, arrays):
        budget[0] -= 1
        if budget[0] == 0:
            raise Killed
        append(self, arrays)

    monkeypatch.setattr(ColumnFiles, "append", dying)
    random_log().write_parquet(tmp_path / "data.parquet")
    kills = 0
    while True:
        try:
            # Not prepare_log, which would write the file, and so its time, again.
            info = _prepare_again(tmp_path)
            break
        except Killed:
            kills += 1
            budget[0] = 30 + kills
    assert kills > 1 and made == ["log"]
    assert info["content_hash"] == expected["content_hash"]
    assert not (tmp_path / "data.preparing").exists()


def _prepare_again(directory: Path):
    options = PrepareOptions(
        source="interactions",
        input=str(directory / "data.parquet"),
        output_dir=str(directory / "data"),
        progress=False,
        max_memory="50kB",
    )
    return prepare(options)[0]


def test_stages_of_another_log_are_not_used(tmp_path):
    with pytest.raises(Killed), open_workspace(tmp_path / "data", {"log": 1}) as space:
        space.stage("log", lambda d: (d / "x").touch())
        raise Killed
    with open_workspace(tmp_path / "data", {"log": 1}) as space:
        assert (space.stage("log", lambda d: None) / "x").exists()
    with pytest.raises(Killed), open_workspace(tmp_path / "data", {"log": 1}) as space:
        space.stage("log", lambda d: (d / "x").touch())
        raise Killed
    with open_workspace(tmp_path / "data", {"log": 2}) as space:
        assert not (space.stage("log", lambda d: None) / "x").exists()


def test_a_kill_between_the_two_renames_loses_no_dataset(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    with pytest.raises(Killed), open_workspace(tmp_path / "data", {}) as space:
        (tmp_path / "data").rename(space.path / "retired")
        raise Killed
    with open_workspace(tmp_path / "data", {"another": "log"}):
        assert (tmp_path / "data" / "old").exists()


def test_two_preparations_of_one_target_are_refused(tmp_path):
    (tmp_path / "data.preparing").mkdir()
    with open(tmp_path / "data.preparing" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process"):
            prepare_frames([], tmp_path)


def test_a_full_disk_leaves_the_old_dataset_and_nothing_else(tmp_path, monkeypatch):
    old = prepare_log(random_log(), tmp_path)
    append, calls = ColumnFiles.append, []

    def full(self, arrays):
        calls.append(1)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, arrays)

    monkeypatch.setattr(ColumnFiles, "append", full)
    with pytest.raises(UserError, match="no room left on its disk. Nothing was changed in"):
        prepare_log(random_log(seed=1), tmp_path, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "data.parquet"]
    monkeypatch.undo()
    assert prepare_log(random_log(), tmp_path)["content_hash"] == old["content_hash"]


def test_a_user_beyond_the_memory_is_named(tmp_path):
    with pytest.raises(UserError, match=r"User 'u0' has \d+ events.*raise --max_memory"):
        prepare_log(random_log(), tmp_path, max_memory="5kB")


def test_synthetic_log_is_the_same_in_any_batches():
    whole = next(frames(50, 30, 20, seed=3, batch=10**6))
    assert pl.concat(frames(50, 30, 20, seed=3, batch=17)).equals(whole)
    lengths = whole.group_by("user").len()["len"]
    assert len(lengths) == 50 and lengths.max() > 4 * lengths.median()  # a heavy tail
    assert not next(frames(50, 30, 20, seed=4)).equals(whole)


@pytest.mark.slow
def test_a_killed_process_continues_with_the_same_command(tmp_path):
    command = [sys.executable, "-m", "launch.prepare", "--source=synthetic_log", "--noprogress"]
    command += ["--synthetic_users=20000", "--max_memory=100MB", "--shards=3"]
    subprocess.run([*command, f"--output_dir={tmp_path / 'clean'}"], cwd=ROOT, check=True)
    killed = [*command, f"--output_dir={tmp_path / 'data'}"]
    process = subprocess.Popen(killed, cwd=ROOT)
    while not (tmp_path / "data.preparing" / "ordered-2").exists() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (tmp_path / "data.preparing" / "ordered-2").exists() and not (tmp_path / "data").exists()
    subprocess.run(killed, cwd=ROOT, check=True)
    info, clean = ((tmp_path / n / "dataset.json").read_text() for n in ("data", "clean"))
    assert info == clean
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "data"]


@pytest.mark.parametrize("form", ["directory", "pattern"])
def test_a_file_that_comes_after_a_kill_is_read(tmp_path, monkeypatch, form):
    """The identity of a preparation covers the files that --input matches."""
    (tmp_path / "p").mkdir()
    row = "user,item,timestamp\nu,{},1\n"
    (tmp_path / "p" / "1.csv").write_text(row.format("a"))
    options = PrepareOptions(
        "interactions",
        str(tmp_path / "data"),
        input=str(tmp_path / "p") + ("/*.csv" if form == "pattern" else ""),
        progress=False,
    )

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("rec2pm_jax.data.prepare.write.write_users", die)
        prepare(options)
    assert (tmp_path / "data.preparing" / "parts").is_dir()
    (tmp_path / "p" / "2.csv").write_text(row.format("b"))
    assert prepare(options)[0]["events"] == 2


@pytest.mark.parametrize(
    ("source", "input_file", "beside"),
    [
        ("movielens", "ratings.dat", "movies.dat"),
        ("movielens", "ratings.csv", "movies.csv"),
        ("movielens", "a.parquet", "a-items.parquet"),
        ("amazon", "Books.csv.gz", "meta_Books.jsonl.gz"),
        ("interactions", "1.csv", None),
    ],
)
def test_the_identity_covers_files_that_are_read_beside_the_input(
    tmp_path, source, input_file, beside
):
    options = PrepareOptions(source, "data", input=str(tmp_path / input_file))
    (tmp_path / input_file).touch()
    found = [make_identity(options)]
    (tmp_path / "prepare.log").touch()  # of another command
    assert make_identity(options) == found[0]
    if beside:
        for text in ("x", "longer"):
            (tmp_path / beside).write_text(text)
            assert make_identity(options) not in found
            found.append(make_identity(options))
    os.utime(tmp_path / input_file, (1, 1))
    assert make_identity(options) not in found


def test_stages_of_another_version_are_not_used(tmp_path, monkeypatch):
    options = PrepareOptions("interactions", "data", input=str(tmp_path))
    before = make_identity(options)
    monkeypatch.setattr("rec2pm_jax.data.prepare.identity._STAGES_VERSION", 99)
    assert make_identity(options) != before


def test_errors_of_the_input_are_not_errors_of_the_output(tmp_path, monkeypatch):
    def fail(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "log.csv")

    monkeypatch.setattr("rec2pm_jax.data.prepare.encode.encode_log", fail)
    with pytest.raises(UserError, match=r"^log.csv: Permission denied. Nothing was changed in"):
        prepare_log(random_log(), tmp_path)


def test_too_little_memory_is_one_line(tmp_path):
    with pytest.raises(UserError, match="Not enough memory to write .*lower --max_memory"):
        prepare(
            PrepareOptions(
                "synthetic",
                str(tmp_path / "data"),
                synthetic_users=10**6,
                synthetic_length=10**9,
                progress=False,
            )
        )
    assert not list(tmp_path.iterdir())
