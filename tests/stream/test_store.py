"""Records and stores: what comes back, what is refused, what survives."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from array import array

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.lmdb_store import LmdbStore
from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.record import HEADER_BYTES, ModelIdentity, RecordFormat, has_expired
from rec2pm_jax.stream.store import MemoryStore, claim, open_store, sweep

FORM = RecordFormat(ModelIdentity("ab" * 16, "c0ffee"), "int8", rows=4, dim=64, width=1)
FIELDS = MutableUser.__slots__


def make_live(pending=(5, 6, 70_000), segments=3, **changes) -> MutableUser:
    live = MutableUser()
    live.events, live.segments, live.groups = 603, segments, 1
    live.memory = bytes(range(256)) + bytes(16) if segments else None
    live.pending = array("i", pending)
    for name, value in changes.items():
        setattr(live, name, value)
    return live


def same(a: MutableUser, b: MutableUser) -> bool:
    return all(getattr(a, name) == getattr(b, name) for name in FIELDS)


@pytest.mark.smoke
@pytest.mark.parametrize(
    "live",
    [
        make_live(),
        make_live((), 0),
        make_live(last_time=-5, watermark=2**62),
        make_live(last_time=0),
    ],
)
def test_records_give_back_what_they_were_made_of(live):
    record = FORM.encode("Zoë", live)
    assert same(FORM.decode("Zoë", record), live)
    assert len(record) == HEADER_BYTES + 272 * bool(live.segments) + 4 * len(live.pending)
    assert HEADER_BYTES <= 48


def test_torn_and_foreign_records_are_refused():
    record = FORM.encode("u", make_live())
    for at in range(len(record)):
        with pytest.raises(UserError, match="damaged|cannot read"):
            FORM.decode("u", record[:at])
        flipped = record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]
        with pytest.raises(UserError, match="damaged|cannot read"):
            FORM.decode("u", flipped)
    with pytest.raises(UserError, match="damaged"):
        FORM.decode("another user", record)
    other = dataclasses.replace(FORM, identity=ModelIdentity("cd" * 16, "c0ffee"))
    with pytest.raises(UserError, match="of another model than cdcd.* rebuild the memories"):
        other.decode("u", record)
    with pytest.raises(UserError, match="stored as int8, not bfloat16"):
        dataclasses.replace(FORM, kind="bfloat16").decode("u", record)


def test_expired_users_are_gone():
    record = FORM.encode("u", make_live(), expires=1000)
    assert has_expired("u", record, 1000.0) and not has_expired("u", record, 999.0)
    assert FORM.decode("u", record, now=999.0) is not None
    assert FORM.decode("u", record, now=1000.0) is None
    store = MemoryStore()
    store.put({"u": record, "v": FORM.encode("v", make_live())}, {})
    assert sweep(store, lambda user, found: has_expired(user, found, 1000.0)) == 1
    assert [user for user, _ in store.items()] == ["v"]


@pytest.fixture(params=["memory", "lmdb"])
def reopened(request, tmp_path):
    """A function that opens the store again; of memory there is only one."""
    if request.param == "memory":
        store = MemoryStore()
        yield lambda: store
        return
    stores = []

    def reopen():
        while stores:
            stores.pop().close()
        stores.append(open_store(str(tmp_path / "store")))
        return stores[-1]

    yield reopen
    while stores:
        stores.pop().close()


def test_protocol(reopened):
    store = reopened()
    users = {f"user {i}": bytes([i]) * (i + 1) for i in range(100)}
    assert store.get(["user 1"]) == [None] and store.marks() == {}
    store.put(users, {"input:a": b"5"})
    store.put({"user 7": b"new", "Zoë": b"x"}, {"input:a": b"6"})
    for again in (False, True):
        store = reopened() if again else store
        assert store.get(["user 7", "nobody", "user 2", "Zoë"]) == [b"new", None, b"\2\2\2", b"x"]
        assert store.marks() == {"input:a": b"6"}
        assert dict(store.items()) == users | {"user 7": b"new", "Zoë": b"x"}
    assert store.delete(["user 7", "nobody"]) == 1 and store.delete(["user 7"]) == 0
    store.compact()
    for again in (False, True):
        store = reopened() if again else store
        assert store.get(["user 7", "user 8"]) == [None, users["user 8"]]
        assert len(dict(store.items())) == 100 and store.marks() == {"input:a": b"6"}
    assert store.size() > 0


def test_another_meaning_is_refused(reopened):
    meaning = {"model": "m1", "memory": "int8"}
    claim(reopened(), meaning)
    claim(reopened(), meaning)
    with pytest.raises(UserError, match="states of model 'm1', not 'm2'.* rebuild the memories"):
        claim(reopened(), {"model": "m2", "memory": "int8"})


def test_two_writers_are_refused(tmp_path):
    store = LmdbStore(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        LmdbStore(tmp_path)
    store.close()
    LmdbStore(tmp_path).close()


def test_no_room_changes_nothing(tmp_path):
    store = LmdbStore(tmp_path, map_bytes=1 << 18)
    store.put({"u": b"old"}, {"input": b"1"})
    with pytest.raises(UserError, match="no room left.* what was committed is safe"):
        store.put({"u": b"new"} | {f"{i}": bytes(1000) for i in range(1000)}, {"input": b"2"})
    assert store.get(["u", "0"]) == [b"old", None] and store.marks() == {"input": b"1"}
    store.close()


def test_compaction_gives_space_back(tmp_path):
    store = LmdbStore(tmp_path)
    store.put({f"{i}": bytes(1000) for i in range(2000)}, {})
    full = store.size()
    sweep(store, lambda user, _: int(user) >= 100)
    store.compact()
    assert store.size() < full / 5 and len(dict(store.items())) == 100
    store.close()


def tidy(store, *more):
    command = [sys.executable, "-m", "launch.tidy_store", f"--store={store}", *more]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.slow
def test_tidying_a_store_from_the_command_line(tmp_path):
    path = tmp_path / "users"
    store = LmdbStore(path)
    last_year, next_year = (int(time.time()) + days * 86_400 for days in (-365, 365))
    records = {f"old {i}": FORM.encode(f"old {i}", make_live(), last_year) for i in range(3000)}
    kept = {user: FORM.encode(user, make_live(), end) for user, end in (("a", 0), ("b", next_year))}
    store.put(records | kept | {"7": FORM.encode("7", make_live())}, {"meaning": b"{}"})
    full = store.size()
    assert "in use by another process" in tidy(path, "--compact").stderr
    store.close()
    done = tidy(path, "--forget=7,8", "--expired", "--compact")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "forgot 1 of 2 named users",
        "forgot 3000 expired users",
    ]
    store = LmdbStore(path)
    assert dict(store.items()) == kept and store.marks() == {"meaning": b"{}"}
    assert store.size() < full / 5
    store.put({"torn": b"x"}, {})
    store.close()
    for flags, message in (
        (["--expired"], "user 'torn' is 1 bytes"),
        ([], "There is nothing to do"),
    ):
        done = tidy(path, *flags)
        assert done.returncode == 1 and message in done.stderr
    assert "there is no store in this directory" in tidy(tmp_path / "none", "--compact").stderr
    assert not (tmp_path / "none").exists()


def test_a_damaged_file_is_reported(tmp_path):
    (tmp_path / "data.mdb").write_bytes(b"not a tree" * 1000)
    with pytest.raises(UserError, match="cannot be opened.* restore it from a backup"):
        LmdbStore(tmp_path)
