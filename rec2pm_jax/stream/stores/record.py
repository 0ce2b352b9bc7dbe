"""One user as bytes: a versioned record that names its model and detects damage.

Little-endian, 44 bytes before the memory:

    version u8, memory format u8, groups u16, model 8 bytes, watermark i64, last time i64,
    events u32, segments u32, expires u32 (seconds since 1970; 0: never), CRC-32 u32

The memory format has the bit 128 where item ids of the exact memory take four bytes. The encoded state
follows if there has been an update. Then come the seen items, if the store keeps them, and the pending
events as int32 fields. The CRC-32 covers the user's id and everything but itself. So a record under
another user's key is detected as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from array import array
from collections.abc import Iterable
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
from rec2pm_jax.stream.users.mutable_user import MutableUser
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Params

VERSION = 2
_WIDE_IDS = 128  # added to the memory format
_FIELDS = struct.Struct("<BBH8sqqIII")
_EXPIRES_AT = _FIELDS.size - 4
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
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
      width: int32 fields of a pending event, 1 to 3.
      seen: what is kept of seen items, one of `seen.SEEN_FORMATS`.
    """

    identity: ModelIdentity
    states: StateFormat
    width: int
    seen: str = "none"

    def new_user(self) -> MutableUser:
        """Return a user without events."""
        user = MutableUser()
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
        fields = _FIELDS.pack(
            VERSION, self._kind_code, user.groups, self._tag, user.watermark, time, user.events,
            user.segments, expires,
        )  # fmt: skip
        seen = b"" if user.seen is None else user.seen.to_bytes()
        body = (user.memory or b"") + seen + _to_little_endian(user.pending).tobytes()
        crc = crc32(body, crc32(fields, crc32(name.encode())))
        return b"".join((fields, _CRC.pack(crc), body))

    def decode(self, name: str, record: bytes, now: float = 0.0) -> MutableUser | None:
        """Return the user of a record, or None if it has expired.

        Args:
          name: the user's id.
          now: seconds since 1970.

        Raises:
          UserError: the record is damaged, of another version of this program or of another model,
            or its memory has another format.
        """
        _check_version(name, record)
        fields, body = record[: _FIELDS.size], record[HEADER_BYTES:]
        (crc,) = _CRC.unpack_from(record, _FIELDS.size)
        if crc != crc32(body, crc32(fields, crc32(name.encode()))):
            raise UserError(
                f"The stored state of user {name!r} is damaged (its checksum is wrong): delete the "
                "user, or restore the store from a backup."
            )
        user = self.new_user()
        _, kind, user.groups, tag, user.watermark, time, user.events, user.segments, expires = (
            _FIELDS.unpack(fields)
        )
        if tag != self._tag:
            raise UserError(
                f"The stored state of user {name!r} is of another model than {self.identity.model} "
                f"(config {self.identity.config_hash}); memories cannot be shared between models: "
                "serve with the model that made it, or rebuild the memories for this one."
            )
        grown = self._kind_code - kind == _WIDE_IDS  # the catalogue, since the record was written
        if kind != self._kind_code and not grown:
            stored = FORMATS[kind % _WIDE_IDS] + (
                ", of 2^24 items or more" if kind & _WIDE_IDS else ""
            )
            raise UserError(
                f"The memory of user {name!r} is stored as {stored}, not {self.states.kind}."
            )
        if expires and expires <= now:
            return None
        user.last_time = None if time == _NO_TIME else time
        size = self.states.bytes - grown * self.states.entries if user.segments else 0
        rest = body[size:]
        if user.seen is not None:
            user.seen = SeenItems.from_bytes(rest, user.seen.detailed)
            rest = rest[user.seen.nbytes :]
        user.pending.frombytes(rest)
        if size:
            user.memory = widen_ids(self.states, body[:size]) if grown else body[:size]
        user.pending = _to_little_endian(user.pending)
        return user


def is_expired(name: str, record: bytes, now: float) -> bool:
    """Return whether a record of any model has expired.

    Args:
      name: the user's id.
      now: seconds since 1970.

    Raises:
      UserError: the record is damaged or of another version of this program.
    """
    _check_version(name, record)
    (expires,) = struct.unpack_from("<I", record, _EXPIRES_AT)
    return 0 < expires <= now


def _check_version(name: str, record: bytes) -> None:
    if len(record) < HEADER_BYTES or record[0] != VERSION:
        what = f"version {record[0]}" if len(record) >= HEADER_BYTES else f"{len(record)} bytes"
        raise UserError(
            f"The stored state of user {name!r} is {what}, which this program (version "
            f"{VERSION}) cannot read: it is torn, or of another version. Rebuild the store."
        )


def _to_little_endian(numbers: array) -> array:
    """Return the numbers with little-endian bytes, or little-endian bytes as numbers."""
    if sys.byteorder == "big":
        numbers = array("i", numbers)
        numbers.byteswap()
    return numbers
