"""Records and stores: contents come back, foreign and damaged ones are refused."""

from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import tempfile
import time

import lmdb
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.state_format import StateFormat
from rec2pm_jax.stream.stores.base import MemoryStore, claim_store, delete_matching, open_store
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from rec2pm_jax.stream.stores.record import (
    RECORD_BYTES,
    STATE_BYTES,
    ModelIdentity,
    RecordFormat,
    is_expired,
)
from rec2pm_jax.stream.users.mutable_user import IN_STORE, MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.typing import ExactMemory, State

STATES = StateFormat("int8", slots=4, dim=64, entries=32, num_items=70_000)
RECORDS = RecordFormat(ModelIdentity("ab" * 16, "c0ffee"), STATES, width=1)


def make_user(pending=(5, 6, 70_000), segments=3, **changes) -> MutableUser:
    user = MutableUser(PendingEvents.of(np.array(pending, np.int64).reshape(-1, 1)))
    user.events, user.segments, user.groups = 603, segments, 1
    user.memory = bytes(range(256)) + bytes(16) + bytes(range(256)) if segments else None
    for name, value in changes.items():
        setattr(user, name, value)
    return user


def stored(user: MutableUser, form: RecordFormat = RECORDS, name: str = "u") -> MutableUser:
    """Return the user as it comes back from its record and its state."""
    found = form.decode(name, form.encode(name, user))
    assert found is not None
    if user.segments:
        assert found.memory is IN_STORE
        form.decode_state(name, found, form.encode_state(name, user))
    return found


@pytest.mark.smoke
@pytest.mark.parametrize(
    "user",
    [
        make_user(),
        make_user((), 0),
        make_user(last_time=-5, watermark=2**62),
        make_user(last_time=0),
    ],
)
def test_decoding_a_record_gives_back_the_user(user):
    if not user.segments:
        user.groups = 0
    assert stored(user, name="Zoë") == user
    record = RECORDS.encode("Zoë", user)
    assert len(record) == RECORD_BYTES + len(user.pending.data) <= 48 + 5
    if user.segments:
        assert len(RECORDS.encode_state("Zoë", user)) == STATE_BYTES + 528 == 540


def test_torn_and_foreign_records_are_refused():
    user = make_user()
    record, state = RECORDS.encode("u", user), RECORDS.encode_state("u", user)
    for whole, decode in (
        (record, lambda data: RECORDS.decode("u", data)),
        (state, lambda data: RECORDS.decode_state("u", make_user(), data)),
    ):
        decode(whole)
        for at in range(len(whole)):
            with pytest.raises(UserError, match="damaged|cannot read"):
                decode(whole[:at])
            flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
            with pytest.raises(UserError, match="damaged|cannot read"):
                decode(flipped)
    with pytest.raises(UserError, match="damaged"):
        RECORDS.decode_state("another user", make_user(), state)
    with pytest.raises(UserError, match="there is none for its record"):
        RECORDS.decode_state("u", make_user(), None)
    with pytest.raises(UserError, match="it has 3 updates, and its record 4"):
        RECORDS.decode_state("u", make_user(segments=4), state)
    with pytest.raises(UserError, match="damaged"):
        RECORDS.decode("another user", record)
    other = dataclasses.replace(RECORDS, identity=ModelIdentity("cd" * 16, "c0ffee"))
    with pytest.raises(UserError, match="of another model than cdcd.* rebuild the memories"):
        other.decode("u", record)
    with pytest.raises(UserError, match="stored as int8, not bfloat16"):
        other = dataclasses.replace(STATES, kind="bfloat16")
        dataclasses.replace(RECORDS, states=other).decode_state("u", user, state)


def test_records_stay_readable_when_the_catalogue_grows_past_24_bits():
    exact = ExactMemory(*np.arange(1, 3 * 32 + 1, dtype=np.int32).reshape(3, 1, 32))
    state = State(np.ones((1, 4, 64), np.float32), np.ones(1), np.ones(1), exact)
    user = make_user(memory=STATES.encode(state).tobytes())
    wide = dataclasses.replace(STATES, num_items=2**24)
    wider, found = dataclasses.replace(RECORDS, states=wide), make_user()
    wider.decode_state("u", found, RECORDS.encode_state("u", user))
    assert found.memory == wide.encode(state).tobytes()
    assert stored(found, wider) == found
    with pytest.raises(UserError, match="stored as int8, of 2.24 items or more, not int8"):
        RECORDS.decode_state("u", user, wider.encode_state("u", found))


def test_expired_users_are_gone():
    record = RECORDS.encode("u", make_user(), expires=1000)
    assert is_expired("u", record, 1000.0) and not is_expired("u", record, 999.0)
    assert RECORDS.decode("u", record, now=999.0) is not None
    assert RECORDS.decode("u", record, now=1000.0) is None
    store = MemoryStore()
    store.put({"u": record, "v": RECORDS.encode("v", make_user())}, {})
    assert delete_matching(store, lambda user, found: is_expired(user, found, 1000.0)) == 1
    assert [user for user, _ in store.items()] == ["v"]


@pytest.fixture(params=["memory", "lmdb"])
def reopened(request, tmp_path):
    """A function that opens the store again; the store in memory stays the same."""
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
    assert store.get(["user 1"]) == [None] and store.metadata() == {}
    store.put(users, {"input:a": b"5"}, {"user 7": b"old", "user 8": b"state"})
    store.put({"user 7": b"new", "Zoë": b"x"}, {"input:a": b"6"}, {"user 7": b"newer"})
    for again in (False, True):
        store = reopened() if again else store
        assert store.get(["user 7", "nobody", "user 2", "Zoë"]) == [b"new", None, b"\2\2\2", b"x"]
        assert store.metadata() == {"input:a": b"6"}
        assert dict(store.items()) == users | {"user 7": b"new", "Zoë": b"x"}
        assert store.get_states(["user 7", "user 1", "user 8"]) == [b"newer", None, b"state"]
    assert store.delete(["user 7", "nobody"]) == 1 and store.delete(["user 7"]) == 0
    store.compact()
    for again in (False, True):
        store = reopened() if again else store
        assert store.get(["user 7", "user 8"]) == [None, users["user 8"]]
        assert store.get_states(["user 7", "user 8"]) == [None, b"state"]
        assert len(dict(store.items())) == 100 and store.metadata() == {"input:a": b"6"}
    assert store.size() > 0


def test_other_settings_are_refused(reopened):
    settings = {"model": "m1", "memory": "int8"}
    claim_store(reopened(), settings)
    claim_store(reopened(), settings)
    with pytest.raises(UserError, match="states of model 'm1', not 'm2'.* rebuild the memories"):
        claim_store(reopened(), {"model": "m2", "memory": "int8"})


def test_two_writers_are_refused(tmp_path):
    store = LmdbStore(tmp_path)
    with pytest.raises(UserError, match="in use by another process"):
        LmdbStore(tmp_path)
    store.close()
    LmdbStore(tmp_path).close()


def test_a_store_that_nothing_was_written_to_leaves_no_directory(tmp_path):
    LmdbStore(tmp_path / "new").close()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/notes.txt").write_text("mine")
    LmdbStore(tmp_path / "old").close()
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["notes.txt"]
    store = LmdbStore(tmp_path / "kept")
    assert store.claim("meaning", b"1") == b"1" and store.claim("meaning", b"2") == b"1"
    store.close()
    LmdbStore(tmp_path / "kept").close()
    assert (tmp_path / "kept/data.mdb").exists()


def test_no_room_changes_nothing(tmp_path):
    store = LmdbStore(tmp_path, map_bytes=1 << 18)
    store.put({"u": b"old"}, {"input": b"1"})
    with pytest.raises(UserError, match="no room left.* what was committed is safe"):
        store.put({"u": b"new"} | {f"{i}": bytes(1000) for i in range(1000)}, {"input": b"2"})
    assert store.get(["u", "0"]) == [b"old", None] and store.metadata() == {"input": b"1"}
    store.close()


@pytest.mark.parametrize(
    ("code", "room", "message"),
    [
        (errno.ENOSPC, 1 << 30, "no room left on its disk"),
        (errno.EDQUOT, 1 << 30, "no room left on its disk"),
        (errno.EIO, 1000, "no room left on its disk"),
        (errno.EIO, 1 << 30, "restore it from a backup"),
    ],
)
def test_a_short_write_on_a_full_disk_is_no_damage(tmp_path, monkeypatch, code, room, message):
    """LMDB reports a write that was cut short as EIO; whether there is room tells the two apart."""
    store = LmdbStore(tmp_path)

    class Disk:
        def __init__(self, **_):
            self.left = room

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def write(self, data):
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= min(self.left, len(data))

        def tell(self):
            return room - self.left

    monkeypatch.setattr(tempfile, "TemporaryFile", Disk)
    with pytest.raises(UserError, match=message):
        with store._explain_errors("written"):
            raise lmdb.DiskError(f"mdb_txn_commit: {os.strerror(code)}")
    store.close()


def test_compaction_gives_space_back(tmp_path):
    store = LmdbStore(tmp_path)
    store.put({f"{i}": bytes(1000) for i in range(2000)}, {})
    full = store.size()
    delete_matching(store, lambda user, _: int(user) >= 100)
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
    records = {f"old {i}": RECORDS.encode(f"old {i}", make_user(), last_year) for i in range(3000)}
    kept = {
        user: RECORDS.encode(user, make_user(), end) for user, end in (("a", 0), ("b", next_year))
    }
    store.put(records | kept | {"7": RECORDS.encode("7", make_user())}, {"meaning": b"{}"})
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
    assert dict(store.items()) == kept and store.metadata() == {"meaning": b"{}"}
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
