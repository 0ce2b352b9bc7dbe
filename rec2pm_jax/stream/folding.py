"""Folding beside the stream: a thread computes new memories while events go on being appended.

What it is given is copied, and what it returns is put into the users' places by the caller: users are
only ever read and changed by one thread. A user who is away may get further events, be committed (with
the segment not folded yet) and be asked for, which waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.memories import Folded, Memories
from rec2pm_jax.stream.mutable_user import MutableUser, due

_TIMINGS = 10_000  # newest kept


class Folding:
    """The users with segments due, and those whose oldest one is away, being folded.

    Batches are made of who is due when `begin` is called, which first settles the batch before: they
    depend on where the input is cut and not on how fast the thread is.

    Attributes:
      folded: memory updates so far.
      update_ms: of the newest batches, milliseconds per update.
    """

    def __init__(
        self, method: Method, memories: Memories, touch: Callable[[str, MutableUser], None]
    ):
        """touch: called before a user is changed."""
        self.folded = 0
        self.update_ms: deque[float] = deque(maxlen=_TIMINGS)
        self._method, self._memories, self._touch = method, memories, touch
        self._due: dict[str, MutableUser] = {}
        self._away: dict[str, MutableUser] = {}
        self._result: Future[tuple[Folded, float]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fold")

    @property
    def due(self) -> int:
        """Users with segments due that are not away."""
        return len(self._due)

    @property
    def away(self) -> int:
        """Users whose oldest due segment is being folded."""
        return len(self._away)

    @property
    def ready(self) -> bool:
        """Whether `settle` would return at once."""
        return self._result is None or self._result.done()

    def add(self, name: str, live: MutableUser) -> None:
        """Takes a user whose pending events have become too many."""
        if name not in self._away:
            self._due[name] = live

    def holds(self, name: str) -> bool:
        """Whether a user has segments due."""
        return name in self._due or name in self._away

    def begin(self, most: int) -> None:
        """Settles, and gives the oldest due segment of at most `most` users to the thread."""
        self.settle()
        for name, live in list(self._due.items()):
            if len(self._away) == most:
                break
            if self._is_foldable(name, live):
                self._away[name] = live
        if self._away:
            heads = self._memories.heads(list(self._away.values()))
            self._result = self._thread.submit(self._timed, heads)

    def settle(self) -> None:
        """Waits for what is away and puts it in place."""
        if self._result is None:
            return
        folded, seconds = self._result.result()
        away, self._away, self._result = self._away, {}, None
        self._install(away, folded)
        self.update_ms.append(seconds * 1e3 / len(away))

    def finish(self, name: str, live: MutableUser) -> None:
        """Folds everything that is due of one user, who is not left waiting behind others."""
        if name in self._away:
            self.settle()
        while name in self._due:
            if self._is_foldable(name, live):
                self._install({name: live}, self._memories.fold(*self._memories.heads([live])))

    def _is_foldable(self, name: str, live: MutableUser) -> bool:
        """Takes a user out of those due; whether there is a segment to fold. What is only old goes."""
        del self._due[name]
        segments, drop = due(self._method, live, self._memories.width)
        if not segments and drop:
            self._touch(name, live)
            del live.pending[: drop * self._memories.width]
        return segments > 0

    def _timed(self, heads) -> tuple[Folded, float]:
        began = time.perf_counter()
        return self._memories.fold(*heads), time.perf_counter() - began

    def _install(self, users: dict[str, MutableUser], folded: Folded) -> None:
        for name, live in users.items():
            self._touch(name, live)
        self._memories.install(list(users.values()), folded)
        self.folded += len(users)
        for name, live in users.items():
            if len(live.pending) >= self._memories.full:
                self._due[name] = live
