"""Periodic commits beside the stream: a snapshot is encoded in parts and written by a thread.

A snapshot is all users changed since the last one, as they are at one place of the input, with the
positions that name this place. The store keeps both or neither. So after a crash the input is read
again from exactly where the states are: events delivered at least once take effect exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.stores.record import RecordFormat
from rec2pm_jax.stream.users.mutable_user import MutableUser


class CommitWriter:
    """The users that changed, the snapshot being encoded, and the one being written.

    Call `mark_changed` before a user is changed. One snapshot may be encoded while the one before is
    written, so that the disk need not wait. They reach the store in order.
    """

    def __init__(self, store: Store, record_format: RecordFormat, lifetime_s: int = 0):
        """Start with no changes.

        Args:
          lifetime_s: seconds from a commit until the users in it expire; 0 for never.
        """
        self._store, self._format, self._lifetime_s = store, record_format, lifetime_s
        self._changed: dict[str, MutableUser] = {}  # since the newest snapshot
        # The newest snapshot: users still to be encoded, what is, and metadata until it is written.
        self._to_encode: dict[str, MutableUser] = {}
        self._records: dict[str, bytes] = {}
        self._states: dict[str, bytes] = {}
        self._metadata: Mapping[str, bytes] | None = None
        self._expires = 0
        # The snapshot before it, which the thread writes.
        self._being_written: dict[str, bytes] = {}
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="commit")

    def mark_changed(self, name: str, user: MutableUser) -> None:
        """Note that a user is about to change, and encode it first if the snapshot needs it as is."""
        if name in self._to_encode:
            self._encode({name: self._to_encode.pop(name)})
        self._changed[name] = user

    def _encode(self, users: Mapping[str, MutableUser]) -> None:
        records, states = self._format.encode_changed(users, self._expires)
        self._records |= records
        self._states |= states

    def has_uncommitted(self, name: str) -> bool:
        """Return whether the store lacks the newest state of a user."""
        return (
            name in self._changed
            or name in self._to_encode
            or name in self._records
            or name in self._being_written
        )

    @property
    def is_encoding(self) -> bool:
        """Whether there is a snapshot that the thread does not write yet."""
        return self._metadata is not None

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is not in the store yet."""
        return self.is_encoding or self._writing is not None

    @property
    def num_changed(self) -> int:
        """Users changed since the newest snapshot."""
        return len(self._changed)

    def take_snapshot(self, metadata: Mapping[str, bytes], now: float = 0.0) -> None:
        """Begin a commit of all changed users; none may be `is_encoding`.

        Args:
          metadata: positions of the input that belong to the users as they are.
          now: seconds since 1970, from which expiry counts.
        """
        self._to_encode, self._changed = self._changed, {}
        self._metadata = dict(metadata)
        self._expires = int(now) + self._lifetime_s if self._lifetime_s else 0

    def advance(self, max_users: int) -> bool:
        """Encode at most `max_users` users, and have a complete snapshot written.

        Returns:
          Whether one more snapshot is in the store.

        Raises:
          UserError: the store could not write it.
        """
        count = min(max_users, len(self._to_encode))
        self._encode(dict(self._to_encode.popitem() for _ in range(count)))
        finished = False
        if self._writing is not None and self._writing.done():
            self._writing.result()  # raises what the thread met
            self._writing, self._being_written, finished = None, {}, True
        if self._metadata is not None and not self._to_encode and self._writing is None:
            self._writing = self._thread.submit(
                self._store.put, self._records, self._metadata, self._states
            )
            self._being_written, self._metadata = self._records, None
            self._records, self._states = {}, {}
        return finished

    def flush(self, metadata: Mapping[str, bytes], now: float = 0.0) -> int:
        """Write all changes; return when they are in the store.

        Args:
          metadata, now: as in `take_snapshot`.

        Returns:
          How many snapshots were written, with those under way.

        Raises:
          UserError: the store could not write them.
        """
        under_way = self._finish()
        self.take_snapshot(metadata, now)
        return under_way + self._finish()

    def _finish(self) -> int:
        written = 0
        while self.is_busy:
            if self._writing is not None:
                self._writing.exception()  # waits; `advance` raises it
            written += self.advance(len(self._to_encode))
        return written
