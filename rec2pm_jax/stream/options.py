"""Settings of a process that serves, and which users it serves."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

from rec2pm_jax.data.hashing import hash_strings
from rec2pm_jax.errors import UserError

DAY_S = 86_400
MAX_SECONDS = (
    10_000 * DAY_S
)  # of settings: 27 years, so that times of expiry fit 32 bits until 2078


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of several workers; each reads all lines and serves a part of the users.

    Attributes:
      index: 0 <= index < count.
      count: how many workers share the store.
    """

    index: int = 0
    count: int = 1

    @property
    def name(self) -> str:
        """I/N, as in `--worker` and in the keys of a shared store."""
        return f"{self.index}/{self.count}"

    def owns(self, user: str) -> bool:
        """Return whether this worker serves a user.

        Example:
          >>> [Worker(index, 2).owns("7") for index in range(2)]
          [False, True]
        """
        return int(hash_strings([user])[0]) % self.count == self.index


def parse_worker(text: str, store: str) -> Worker:
    """Parse the value of `--worker`.

    Args:
      text: I/N.
      store: address of the store; several workers need a server.

    Raises:
      UserError: the text is malformed, or the store cannot be shared.
    """
    parts = re.fullmatch(r"(\d+)/(\d+)", text)
    if not parts or int(parts[1]) >= int(parts[2]):
        raise UserError(f"--worker={text} must be I/N with 0 <= I < N, for example 0/4.")
    worker = Worker(int(parts[1]), int(parts[2]))
    if worker.count > 1 and not store.startswith("redis"):
        raise UserError(
            f"--worker={text}: several workers need a store that they share, redis://.."
        )
    return worker


class EngineOptions(NamedTuple):
    """Settings of an engine.

    Attributes:
      memory: format of stored memories, also between updates; one of `codec.FORMATS`.
      max_cached_users: users held in the process; beyond it the oldest committed ones are released.
      sessions: users whose keys and values are kept between their requests.
      lifetime_s: seconds until a user without new events expires, at most `MAX_SECONDS`; 0 for never.
      max_ahead_s: seconds that an event may lie in the future; may be infinite.
      worker: which of the processes that share the store this is.
      known_users: whether a user that the store lacks starts with the events of the recommender's
        dataset, if it has that user.
      seen: what is kept of the items that users have seen, one of `seen.SEEN_FORMATS`.
    """

    memory: str = "float32"
    max_cached_users: int = 200_000
    sessions: int = 64
    lifetime_s: int = 0
    max_ahead_s: float = DAY_S
    worker: Worker = Worker()
    known_users: bool = False
    seen: str = "none"
