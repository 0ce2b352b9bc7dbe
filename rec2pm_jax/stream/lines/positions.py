"""How far a file of lines was read, as metadata of a store.

The position of a file is the offset behind the last line taken, with a digest of how the file begins.
The digest tells a replaced file from the one that was read.
"""

from __future__ import annotations

import hashlib
import json

HEAD_BYTES = 1024  # of a file, covered by the digest


def position_key(name: str) -> str:
    """Return the key of a file's position, given the name of the file without its directory."""
    return f"input:{name}"


def encode_position(offset: int, head: bytes) -> bytes:
    """Return a position.

    Args:
      offset: bytes behind the last line taken.
      head: the first `HEAD_BYTES` bytes of the file, or all that it has.
    """
    head = head[:offset]
    position = {"offset": offset, "head": digest(head), "head_bytes": len(head)}
    return json.dumps(position).encode()


def digest(head: bytes) -> str:
    """Return what stands for the first bytes of a file."""
    return hashlib.blake2b(head, digest_size=8).hexdigest()
