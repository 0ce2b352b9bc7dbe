"""Periodic commits beside the stream: a snapshot is encoded in slices and written by a thread.

A snapshot is all users changed since the one before, as they are at one place of the input, together
with the marks that name this place. The store keeps both or neither, so after a crash the input is
read again from exactly where the states are: at-least-once delivery has an exactly-once effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.stream.record import RecordFormat
from rec2pm_jax.stream.store import Store


class Commits:
    """What has to be written, and what is being written.

    Call `touch` before a user is changed. One snapshot may be written while the next is encoded, so
    that the disk need not wait; they reach the store in order.
    """

    def __init__(self, store: Store, form: RecordFormat, lifetime: int = 0):
        """lifetime: seconds that a user is kept after the last commit of a change; 0: for good."""
        self._store, self._form, self._lifetime = store, form, lifetime
        self._dirty: dict[str, MutableUser] = {}
        self._frozen: dict[str, MutableUser] = {}  # of the snapshot, not encoded yet
        self._records: dict[str, bytes] = {}  # of the snapshot
        self._marks: Mapping[str, bytes] | None = None
        self._expires = 0
        self._written: dict[str, bytes] = {}  # of the snapshot before
        self._writing: Future | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    def touch(self, user: str, live: MutableUser) -> None:
        if user in self._frozen:  # as it was when the snapshot was taken
            self._records[user] = self._form.encode(user, self._frozen.pop(user), self._expires)
        self._dirty[user] = live

    def holds(self, user: str) -> bool:
        """Whether the store does not yet have the newest state of a user."""
        return (
            user in self._dirty
            or user in self._frozen
            or user in self._records
            or user in self._written
        )

    @property
    def encoding(self) -> bool:
        """Whether there is a snapshot that is not being written yet."""
        return self._marks is not None

    @property
    def busy(self) -> bool:
        """Whether a snapshot is on its way."""
        return self.encoding or self._writing is not None

    @property
    def changed(self) -> int:
        """Users changed since the newest snapshot."""
        return len(self._dirty)

    def begin(self, marks: Mapping[str, bytes], now: float = 0.0) -> None:
        """Takes a snapshot; the one before must be with the thread (not `encoding`)."""
        self._frozen, self._dirty = self._dirty, {}
        self._marks = dict(marks)
        self._expires = int(now) + self._lifetime if self._lifetime else 0

    def advance(self, users: int) -> bool:
        """Encodes some more users, and has what is whole written; True when one more is in the store.

        Raises:
          UserError: the store could not keep it.
        """
        for _ in range(min(users, len(self._frozen))):
            user, live = self._frozen.popitem()
            self._records[user] = self._form.encode(user, live, self._expires)
        done = self._writing is not None and self._writing.done()
        if done:
            self._writing.result()
            self._writing, self._written = None, {}
        if self.encoding and not self._frozen and self._writing is None:
            self._writing = self._thread.submit(self._store.put, self._records, self._marks)
            self._written, self._records, self._marks = self._records, {}, None
        return done

    def flush(self, marks: Mapping[str, bytes], now: float = 0.0) -> int:
        """Has everything written, and returns when it is: how many snapshots that took.

        Raises:
          UserError: the store could not keep it.
        """
        before = self._finish()
        self.begin(marks, now)
        return before + self._finish()

    def _finish(self) -> int:
        written = 0
        while self.busy:
            if self._writing is not None:
                self._writing.exception()  # waits; `advance` raises it
            written += self.advance(len(self._frozen))
        return written
