"""One user as bytes: two versioned records that name their model and detect damage.

Every event changes the record of a user, and an update changes the state. They are stored apart, so
that an event does not write the state again. Little-endian, the record has 48 bytes and what follows:

    CRC-32 u32, version u8, 3 bytes of 0, model 8 bytes, watermark i64, last time i64, events u32,
    segments u32, expires u32 (seconds since 1970; 0: never), number of pending events u32
    the seen items, if the store keeps them, and the pending events (`users/pending.py`)

The state, of users with an update, has 12 bytes and the encoded `State`:

    CRC-32 u32, version u8, memory format u8, groups u16, segments u32

The memory format has the bit 128 where item ids of the exact memory take four bytes. A CRC-32 covers
the user's id and everything but itself. So a record under another user's key is detected as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from collections.abc import Iterable, Mapping
from functools import cached_property
from zlib import crc32

import jax
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.methods.state_format import StateFormat, widen_ids
from rec2pm_jax.nn.catalogue.sharded_table import is_spread
from rec2pm_jax.stream.users.mutable_user import IN_STORE, MutableUser
from rec2pm_jax.stream.users.pending import PendingEvents
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Params

VERSION = 3
_WIDE_IDS = 128  # added to the memory format
_RECORD = struct.Struct("<B3x8sqqIIII")  # without the CRC-32
_STATE = struct.Struct("<BBHI")
_CRC_BYTES = 4
RECORD_BYTES = _CRC_BYTES + _RECORD.size  # before seen items and pending events
STATE_BYTES = _CRC_BYTES + _STATE.size  # before the encoded state
_EXPIRES_AT = RECORD_BYTES - 8
_NO_TIME = -(2**63)


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which model a state belongs to.

    Attributes:
      model: hex digest of the parameters as trained.
      config_hash: hash of its configuration.
    """

    model: str
    config_hash: str

    @classmethod
    def from_params(
        cls, config: Config, params: Params, rows: Iterable[np.ndarray] = ()
    ) -> ModelIdentity:
        """Identify a model.

        Args:
          params: as trained, without rows for new items: a grown catalogue keeps the identity, since
            states stay valid.
          rows: of the item table, part by part in the order of ids, where it is spread over devices.
        """
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            digest.update(jax.tree_util.keystr(path).encode())
            for part in rows if is_spread(leaf) else (leaf,):
                digest.update(np.ascontiguousarray(part).tobytes())
        return cls(digest.hexdigest(), config_hash(config))

    @property
    def tag(self) -> bytes:
        """8 bytes that stand for the model in every record."""
        text = f"{self.model} {self.config_hash}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """How users of one model become bytes.

    Attributes:
      identity: of the model.
      states: how states become bytes.
      width: fields of a pending event, 1 to 3.
      seen: what is kept of seen items, one of `seen.SEEN_FORMATS`.
    """

    identity: ModelIdentity
    states: StateFormat
    width: int
    seen: str = "none"

    def new_user(self) -> MutableUser:
        """Return a user without events."""
        user = MutableUser(PendingEvents(self.width))
        if self.seen != "none":
            user.seen = SeenItems(self.seen == "events")
        return user

    @cached_property
    def _tag(self) -> bytes:
        return self.identity.tag

    @cached_property
    def _kind_code(self) -> int:
        wide = _WIDE_IDS if self.states.id_bytes == 4 else 0
        return FORMATS.index(self.states.kind) + wide

    def encode(self, name: str, user: MutableUser, expires: int = 0) -> bytes:
        """Return the record of a user.

        Args:
          name: the user's id.
          expires: seconds since 1970 at which the record expires; 0 for never.
        """
        time = _NO_TIME if user.last_time is None else user.last_time
        head = _RECORD.pack(
            VERSION, self._tag, user.watermark, time, user.events, user.segments, expires,
            len(user.pending),
        )  # fmt: skip
        if user.seen is not None:
            head += user.seen.to_bytes()
        return _seal(name, head + user.pending.data)

    def encode_state(self, name: str, user: MutableUser) -> bytes:
        """Return the state of a user with an update, whose memory is not `IN_STORE`."""
        assert user.memory
        head = _STATE.pack(VERSION, self._kind_code, user.groups, user.segments)
        return _seal(name, head + user.memory)

    def encode_changed(
        self, users: Mapping[str, MutableUser], expires: int = 0
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Return what a store lacks of users: their records, and the states that changed.

        Args:
          users: by id; their states count as stored from then on.
          expires: as in `encode`.
        """
        records, states = {}, {}
        for name, user in users.items():
            records[name] = self.encode(name, user, expires)
            if user.state_changed:
                states[name] = self.encode_state(name, user)
                user.state_changed = False
        return records, states

    def decode(self, name: str, record: bytes, now: float = 0.0) -> MutableUser | None:
        """Return the user of a record, or None if it has expired; the memory is `IN_STORE`.

        Args:
          name: the user's id.
          now: seconds since 1970.

        Raises:
          UserError: the record is damaged, of another version of this program or of another model.
        """
        _check(name, record, RECORD_BYTES)
        _, tag, watermark, time, events, segments, expires, pending = _RECORD.unpack_from(
            record, _CRC_BYTES
        )
        if tag != self._tag:
            raise UserError(
                f"The stored state of user {name!r} is of another model than {self.identity.model} "
                f"(config {self.identity.config_hash}); memories cannot be shared between models: "
                "serve with the model that made it, or rebuild the memories for this one."
            )
        if expires and expires <= now:
            return None
        rest, seen = record[RECORD_BYTES:], None
        if self.seen != "none":
            seen = SeenItems.from_bytes(rest, self.seen == "events")
            rest = rest[seen.nbytes :]
        return MutableUser(
            PendingEvents(self.width, pending, bytearray(rest)),
            events=events,
            watermark=watermark,
            last_time=None if time == _NO_TIME else time,
            segments=segments,
            memory=IN_STORE if segments else None,
            seen=seen,
        )

    def decode_state(self, name: str, user: MutableUser, stored: bytes | None) -> None:
        """Give a user the memory that is `IN_STORE`.

        Args:
          name: the user's id.
          stored: the state in the store, which should have one.

        Raises:
          UserError: the state is missing, damaged, of another version of this program, or of another
            number of updates than the record; or its memory has another format.
        """
        if stored is None:
            raise _damaged(name, "there is none for its record")
        _check(name, stored, STATE_BYTES)
        _, kind, user.groups, segments = _STATE.unpack_from(stored, _CRC_BYTES)
        if segments != user.segments:
            raise _damaged(name, f"it has {segments} updates, and its record {user.segments}")
        grown = self._kind_code - kind == _WIDE_IDS  # the catalogue, since the state was written
        if kind != self._kind_code and not grown:
            found = FORMATS[kind % _WIDE_IDS] + (
                ", of 2^24 items or more" if kind & _WIDE_IDS else ""
            )
            raise UserError(
                f"The memory of user {name!r} is stored as {found}, not {self.states.kind}."
            )
        memory = stored[STATE_BYTES:]
        user.memory = widen_ids(self.states, memory) if grown else memory


def is_expired(name: str, record: bytes, now: float) -> bool:
    """Return whether a record of any model has expired.

    Args:
      name: the user's id.
      now: seconds since 1970.

    Raises:
      UserError: the record is damaged or of another version of this program.
    """
    _check(name, record, RECORD_BYTES)
    (expires,) = struct.unpack_from("<I", record, _EXPIRES_AT)
    return 0 < expires <= now


def _seal(name: str, body: bytes) -> bytes:
    """Return a record or state: its CRC-32 and the rest."""
    return crc32(name.encode(), crc32(body)).to_bytes(_CRC_BYTES, "little") + body


def _check(name: str, record: bytes, least: int) -> None:
    """Raise UserError if a record or state is shorter than `least`, of another version or damaged."""
    if len(record) < least or record[_CRC_BYTES] != VERSION:
        what = f"version {record[_CRC_BYTES]}" if len(record) >= least else f"{len(record)} bytes"
        raise UserError(
            f"The stored state of user {name!r} is {what}, which this program (version {VERSION}) "
            "cannot read: it is torn, or of another version. Rebuild the store."
        )
    found = crc32(name.encode(), crc32(memoryview(record)[_CRC_BYTES:]))
    if found != int.from_bytes(record[:_CRC_BYTES], "little"):
        raise _damaged(name)


def _damaged(name: str, reason: str = "its checksum is wrong") -> UserError:
    return UserError(
        f"The stored state of user {name!r} is damaged ({reason}): delete the user, or restore the "
        "store from a backup."
    )
