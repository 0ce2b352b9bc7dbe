"""The journal holds what was applied, and a store that is behind catches up: each event counts once."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.serve import journal as journals
from rec2pm_jax.serve.journal import Journal, JournaledStore
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import parse_event
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.serve_local import serve_locally
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("journal"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config(types=2))


@pytest.fixture(scope="module")
def events(dataset):
    return [parse_event(e, f"u{u}") for u in range(3) for e in raw_events(dataset, u)]


def open_engine(model, journal, store=None):
    return Engine(model, JournaledStore(store or MemoryStore(), journal))


def read_lines(journal):
    return [line for path in sorted(journal.directory.glob("*.jsonl")) for line in open(path)]


def counts(engine):
    return [engine.get_user(f"u{u}").events for u in range(3)]


def test_stores_catch_up_from_where_they_are(model, events, tmp_path, dataset):
    wanted = [int(n) for n in dataset.lengths[:3]]
    journal, store = Journal(tmp_path / "j"), MemoryStore()
    engine = open_engine(model, journal, store)
    third = len(events) // 3
    for begin in (0, third):  # the second part is not committed
        part = events[begin : begin + third]
        engine.apply(part)
        journal.append(part)
        if not begin:
            engine.commit(journal.positions())
    journal.close()
    journal = Journal(tmp_path / "j")
    behind, empty = open_engine(model, journal, store), open_engine(model, journal)
    assert journal.replay(behind) == third and journal.replay(empty) == 2 * third
    assert journal.replay(behind) == 0
    rest = events[2 * third :]
    behind.apply(rest)
    journal.append(rest)
    behind.commit(journal.positions())
    assert journal.replay(empty) == len(rest)
    assert counts(behind) == counts(empty) == wanted
    assert [journals.format_event(e).decode() for e in events] == read_lines(journal)
    assert len(list(journal.directory.glob("*.jsonl"))) == 2


def test_half_a_line_is_removed(model, events, tmp_path):
    journal = Journal(tmp_path)
    journal.append(events[:5])
    journal.close()
    [path] = tmp_path.glob("*.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    journal = Journal(tmp_path)
    assert journal.replay(open_engine(model, journal)) == 4
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:4])


def test_a_file_that_grows_is_never_cut(model, events, tmp_path, monkeypatch):
    """A swap replays the journal in another thread than the one that appends to it."""
    journal, run = Journal(tmp_path), journals.run_stream
    engine = open_engine(model, journal)
    listed = Path.glob

    def list_late(path, pattern):  # the first event since the start arrives just before
        monkeypatch.setattr(Path, "glob", listed)
        journal.append(events[:1])
        return listed(path, pattern)

    def run_and_append(*args, **more):
        summary = run(*args, **more)
        journal.append(events[1:3])
        return summary

    monkeypatch.setattr(Path, "glob", list_late)
    monkeypatch.setattr(journals, "run_stream", run_and_append)
    assert journal.replay(engine) == 1
    assert len(read_lines(journal)) == 3


def test_a_clock_that_is_set_back_does_not_change_the_order(events, tmp_path, monkeypatch):
    for second, event in zip((50, 10, 10, 50), events, strict=False):
        monkeypatch.setattr(
            journals.time,
            "gmtime",
            lambda s=second: time.struct_time((2030, 1, 1, 0, 0, s, 1, 1, 0)),
        )
        journal = Journal(tmp_path)
        journal.append([event])
        journal.close()
    assert [journals.format_event(e).decode() for e in events[:4]] == read_lines(journal)


def test_files_end_and_are_named_once(model, events, tmp_path):
    journal = Journal(tmp_path, Worker(1, 2), file_s=0)
    assert journal.directory == tmp_path / "1-of-2"
    for event in events[:3]:
        journal.append([event])
        time.sleep(0.001)
    assert len(journal.positions()) == 3 and len(journal.positions()) == 1
    engine = open_engine(model, journal)
    assert journal.replay(engine) == 3
    name = re.compile(r"input:events-\d{8}T\d{6}Z-\d{4}\.jsonl")
    assert sum(bool(name.fullmatch(key)) for key in engine.store.metadata()) == 3


def test_a_directory_in_use(tmp_path):
    with pytest.raises(UserError, match="in use by another process"):
        _first, _second = Journal(tmp_path), Journal(tmp_path)


def test_a_full_disk_ends_the_service(model, tmp_path, monkeypatch, dataset):
    journal, store = Journal(tmp_path), MemoryStore()
    body = {"user": "u", "type": dataset.event_types[0]}
    with serve_locally(open_engine(model, journal, store), journal=journal) as service:
        assert service.post("/events", body | {"item": "i1"})[1]["accepted"] == 1
        monkeypatch.setattr(journals._JournalFile, "write", refuse)
        status, answer = service.post("/events", body | {"item": "i2"})
        assert status == 503 and "no room" in answer["error"]
    fresh = open_engine(model, Journal(tmp_path / "other"), store)
    assert fresh.get_user("u").events == 1


def refuse(self, block):
    raise UserError("Cannot write --journal: no room left on its disk.")


def test_only_what_was_applied_is_written(model, tmp_path, dataset):
    journal = Journal(tmp_path)
    kind = dataset.event_types[0]
    with serve_locally(open_engine(model, journal), journal=journal) as service:
        rows = [{"user": "u", "item": f"i{n}", "type": kind, "seq": n} for n in (1, 2, 2, 1, 3)]
        assert service.post("/events", {"events": rows})[1]["accepted"] == 3
    assert [json.loads(line)["seq"] for line in read_lines(journal)] == [1, 2, 3]
