"""Two commands that write one dataset at once: the second is refused by name, and nothing is lost."""

from __future__ import annotations

import dataclasses
import fcntl
import multiprocessing
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import append, compact, prepare, undo_append, write
from rec2pm_jax.errors import UserError
from rec2pm_jax.lock import LOCK_FILE, alone_in
from tests.helpers.data import random_log

DAYS = 4


def options(directory: Path, day: int, **changes) -> PrepareOptions:
    return PrepareOptions(
        "interactions",
        str(directory / "data"),
        input=str(directory / f"day{day}.parquet"),
        progress=False,
        **changes,
    )


WRITERS = {
    "prepare": lambda directory: prepare(options(directory, 2, overwrite=True)),
    "append": lambda directory: append(options(directory, 3)),
    "compact": lambda directory: compact(str(directory / "data"), progress=False),
    "undo": lambda directory: undo_append(str(directory / "data")),
}


@pytest.fixture
def shop(tmp_path):
    """A dataset of two days, and the logs of two more."""
    log = random_log(events=100 * DAYS).drop("kind")
    for day in range(DAYS):
        log[100 * day : 100 * day + 100].write_parquet(tmp_path / f"day{day}.parquet")
    prepare(options(tmp_path, 0))
    append(options(tmp_path, 1))
    return tmp_path


@contextmanager
def held_at_the_last_moment(writer, directory: Path, monkeypatch):
    """Run a writer in a thread, and hold it when it writes the users of its result."""
    reached, go_on = threading.Event(), threading.Event()
    write_users = write.write_users

    def held(*args):
        if threading.current_thread() is thread:
            reached.set()
            go_on.wait()
        write_users(*args)

    monkeypatch.setattr(write, "write_users", held)
    thread = threading.Thread(target=writer, args=(directory,))
    thread.start()
    try:
        assert reached.wait(60)
        yield
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize("first", sorted(set(WRITERS) - {"undo"}))
@pytest.mark.parametrize("second", WRITERS)
def test_the_second_writer_is_refused_by_name(shop, monkeypatch, first, second):
    with (
        held_at_the_last_moment(WRITERS[first], shop, monkeypatch),
        pytest.raises(UserError, match="The dataset .*data is in use by another process"),
    ):
        WRITERS[second](shop)
    events = {"prepare": 100, "append": 300, "compact": 200}[first]
    assert len(open_dataset(shop / "data").histories.ids) == events
    assert not list(shop.glob("*.preparing"))


def test_an_append_that_is_killed_before_its_last_step_can_be_repeated(shop, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("rec2pm_jax.data.prepare.appending.replace_info", die)
        append(options(shop, 2))
    assert (shop / "data" / "delta-00002").is_dir()  # dataset.json does not name it
    assert open_dataset(shop / "data").info["events"] == 200
    assert append(options(shop, 3))["deltas"] == 2
    assert len(open_dataset(shop / "data").histories.ids) == 300
    assert append(options(shop, 2))["deltas"] == 3


def test_two_paths_of_one_dataset_have_one_lock(shop, monkeypatch):
    (shop / "alias").symlink_to(shop / "data")
    with (
        held_at_the_last_moment(WRITERS["append"], shop, monkeypatch),
        pytest.raises(UserError, match="in use by another process"),
    ):
        compact(str(shop / "alias"), progress=False)
    compact(str(shop / "alias"), progress=False)
    assert (shop / "alias").is_symlink() and open_dataset(shop / "data").info["events"] == 300


def test_files_that_come_during_a_preparation_are_not_deleted(tmp_path, monkeypatch):
    random_log().drop("kind").write_parquet(tmp_path / "day0.parquet")
    write_users = write.write_users

    def meanwhile(*args):
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "thesis.txt").touch()
        write_users(*args)

    monkeypatch.setattr(write, "write_users", meanwhile)
    with pytest.raises(UserError, match="holds no prepared dataset"):
        prepare(options(tmp_path, 0, overwrite=True))
    assert (tmp_path / "data" / "thesis.txt").exists()


def test_a_command_without_a_dataset_keeps_the_stages_of_a_killed_one(tmp_path):
    (tmp_path / "data.preparing" / "log").mkdir(parents=True)
    with pytest.raises(UserError, match="no prepared dataset"):
        compact(str(tmp_path / "data"), progress=False)
    assert (tmp_path / "data.preparing" / "log").is_dir()


def test_a_lock_on_a_deleted_file_protects_nothing(tmp_path, monkeypatch):
    """The holder deletes the lock file between another process's open and its flock."""
    directory = tmp_path / "place"
    flock, calls = fcntl.flock, []

    def late(file, mode):
        calls.append(file)
        if len(calls) == 1:
            os.unlink(directory / LOCK_FILE)
        flock(file, mode)

    monkeypatch.setattr("fcntl.flock", late)
    with alone_in(directory), pytest.raises(UserError, match="in use"), alone_in(directory):
        pass
    assert len(calls) == 3 and (directory / LOCK_FILE).exists()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_lock_where_something_else_is(tmp_path, kind):
    place = tmp_path / "place"
    place.touch() if kind == "file" else place.symlink_to("nowhere")
    with pytest.raises(UserError, match="Cannot write .*place: File exists"), alone_in(place):
        pass


def test_a_directory_that_goes_before_it_is_locked(tmp_path, monkeypatch):
    """The holder deletes the directory between another process's mkdir and open."""
    mkdir, calls = Path.mkdir, []

    def late(path, *args, **kwargs):
        mkdir(path, *args, **kwargs)
        calls.append(path)
        if len(calls) == 1:
            path.rmdir()
        if len(calls) == 2:
            raise FileExistsError(17, "File exists")

    monkeypatch.setattr(Path, "mkdir", late)
    with alone_in(tmp_path / "place"):
        assert len(calls) == 3


def _append_until_done(directory: Path, day: int) -> None:
    while True:
        try:
            return append(options(directory, day)) and None
        except UserError as error:
            assert "in use by another process" in str(error)


def _compact_sometimes(directory: Path) -> None:
    for _ in range(6):
        try:
            compact(str(directory / "data"), progress=False)
        except UserError as error:
            assert "in use by another process" in str(error) or "no deltas" in str(error)


@pytest.mark.slow
def test_many_writers_lose_nothing(tmp_path):
    """Eight processes append, and two compact, all at once and again and again."""
    log = random_log(events=1000).drop("kind")
    for day in range(9):
        log[100 * day : 100 * day + 100].write_parquet(tmp_path / f"day{day}.parquet")
    prepare(options(tmp_path, 0))
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_append_until_done, args=(tmp_path, day)) for day in range(1, 9)]
    jobs += [context.Process(target=_compact_sometimes, args=(tmp_path,)) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
        assert job.exitcode == 0
    assert len(open_dataset(tmp_path / "data").histories.ids) == 900
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["data"]


@pytest.mark.parametrize("command", [prepare, lambda o: compact(o.output_dir, progress=False)])
def test_the_current_directory_is_not_replaced(shop, monkeypatch, command):
    monkeypatch.chdir(shop / "data")
    for place in (".", "", "..", "/"):
        with pytest.raises(UserError, match="current directory or above"):
            command(dataclasses.replace(options(shop, 2, overwrite=True), output_dir=place))
    append(dataclasses.replace(options(shop, 2), output_dir="."))
    assert open_dataset(shop / "data").info["events"] == 300
    with pytest.raises(UserError, match="cannot be a dataset"):
        append(dataclasses.replace(options(shop, 2), output_dir="/"))
