"""One user in bytes: a versioned record that knows its model and whether it is whole.

Little-endian, 44 bytes before the memory:

    version u8, memory format u8, groups u16, model 8 bytes, watermark i64, last time i64,
    events u32, segments u32, expires u32 (seconds since 1970; 0: never), CRC-32 u32

then the encoded memory where there has been an update, then the pending events, int32 fields. The
CRC-32 covers the user's id and everything but itself, so that a record under another key is not
taken for that user's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import sys
from array import array
from zlib import crc32

import jax
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import config_hash
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS, check_format, slot_bytes
from rec2pm_jax.stream.mutable_user import MutableUser
from rec2pm_jax.typing import Params

VERSION = 1
_FIELDS = struct.Struct("<BBH8sqqIII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
_NO_TIME = -(2**63)


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """Which model a state belongs to.

    Attributes:
      model: hex digest of the parameters as trained.
      config_hash: of its configuration.
    """

    model: str
    config_hash: str

    @classmethod
    def of(cls, config: Config, params: Params) -> ModelIdentity:
        """Of parameters before new items grow them: their states stay good when a catalogue grows."""
        digest = hashlib.blake2b(digest_size=16)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return cls(digest.hexdigest(), config_hash(config))

    @property
    def tag(self) -> bytes:
        """8 bytes that stand for both in every record."""
        text = f"{self.model} {self.config_hash}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()


@dataclasses.dataclass(frozen=True)
class RecordFormat:
    """How states of one model become bytes.

    Attributes:
      identity: of the model.
      kind: format of the memory, one of `codec.FORMATS`.
      rows, dim: shape of a user's memory, [G * C, D].
      width: int32 fields of a pending event, 1 to 3.
    """

    identity: ModelIdentity
    kind: str
    rows: int
    dim: int
    width: int

    def __post_init__(self):
        check_format(self.kind)
        object.__setattr__(self, "_tag", self.identity.tag)
        object.__setattr__(self, "_kind", FORMATS.index(self.kind))
        object.__setattr__(self, "_memory_bytes", self.rows * slot_bytes(self.kind, self.dim))

    def encode(self, user: str, live: MutableUser, expires: int = 0) -> bytes:
        """The record of a user."""
        time = _NO_TIME if live.last_time is None else live.last_time
        fields = _FIELDS.pack(
            VERSION, self._kind, live.groups, self._tag, live.watermark, time, live.events,
            live.segments, expires,
        )  # fmt: skip
        body = (live.memory or b"") + _little(live.pending).tobytes()
        crc = crc32(body, crc32(fields, crc32(user.encode())))
        return b"".join((fields, _CRC.pack(crc), body))

    def decode(self, user: str, record: bytes, now: float = 0.0) -> MutableUser | None:
        """The user in a record; None if it has expired at `now`.

        Raises:
          UserError: a torn record, one of another version of this program, of another model, or
            with memory in another format.
        """
        _check_version(user, record)
        fields, body = record[: _FIELDS.size], record[HEADER_BYTES:]
        (crc,) = _CRC.unpack_from(record, _FIELDS.size)
        if crc != crc32(body, crc32(fields, crc32(user.encode()))):
            raise UserError(
                f"The stored state of user {user!r} is damaged (its checksum is wrong): delete the "
                "user, or restore the store from a backup."
            )
        live = MutableUser()
        _, kind, live.groups, tag, live.watermark, time, live.events, live.segments, expires = (
            _FIELDS.unpack(fields)
        )
        if tag != self._tag:
            raise UserError(
                f"The stored state of user {user!r} is of another model than {self.identity.model} "
                f"(config {self.identity.config_hash}); memories cannot be shared between models: "
                "serve with the model that made it, or rebuild the memories for this one."
            )
        if kind != self._kind:
            raise UserError(
                f"The memory of user {user!r} is stored as {FORMATS[kind]}, not {self.kind}."
            )
        if expires and expires <= now:
            return None
        live.last_time = None if time == _NO_TIME else time
        size = self._memory_bytes if live.segments else 0
        live.memory = body[:size] if size else None
        live.pending.frombytes(body[size:])
        live.pending = _little(live.pending)
        return live


def has_expired(user: str, record: bytes, now: float) -> bool:
    """Whether the time of a stored user is over, of any model: `decode` would give None.

    Raises:
      UserError: a torn record, or one of another version of this program.
    """
    _check_version(user, record)
    (expires,) = struct.unpack_from("<I", record, _FIELDS.size - 4)
    return 0 < expires <= now


def _check_version(user: str, record: bytes) -> None:
    if len(record) < HEADER_BYTES or record[0] != VERSION:
        what = f"version {record[0]}" if len(record) >= HEADER_BYTES else f"{len(record)} bytes"
        raise UserError(
            f"The stored state of user {user!r} is {what}, which this program (version "
            f"{VERSION}) cannot read: it is torn, or of another version. Rebuild the store."
        )


def _little(numbers: array) -> array:
    """The same numbers with little-endian bytes."""
    if sys.byteorder == "big":
        numbers = array("i", numbers)
        numbers.byteswap()
    return numbers
