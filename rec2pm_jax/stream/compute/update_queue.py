"""Updates beside the stream: a thread computes new memories while events are appended.

The thread gets copies and returns new states, which the caller's thread gives to the users. So only
one thread ever reads or changes users. While the memory of a user is computed, the user may get further
events, be committed (with the segment still pending), and be asked for, which waits for the result.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.compute.updater import MemoryUpdater, UpdatedStates, UpdateInputs
from rec2pm_jax.stream.metrics import MAX_TIMINGS
from rec2pm_jax.stream.users.mutable_user import MutableUser


class UpdateQueue:
    """Users with a full segment: those that wait, and the batch that the thread computes.

    A batch is made of the users that wait when `start_batch` is called, which first finishes the batch
    before. So batches depend on how the input is cut, and not on how fast the thread is.

    Attributes:
      num_updates: memory updates so far.
      update_ms: of the newest batches, milliseconds per update.
    """

    def __init__(
        self,
        updater: MemoryUpdater,
        read_states: Callable[[Mapping[str, MutableUser]], None],
        mark_changed: Callable[[str, MutableUser], None],
    ):
        """Start with no users.

        Args:
          read_states: called with users by id before their states are used, see `IN_STORE`.
          mark_changed: called with a user before the user is changed.
        """
        self.num_updates = 0
        self.update_ms: deque[float] = deque(maxlen=MAX_TIMINGS)
        self._updater = updater
        self._read_states, self._mark_changed = read_states, mark_changed
        self._waiting: dict[str, MutableUser] = {}
        self._running: dict[str, MutableUser] = {}
        self._result: Future[tuple[UpdatedStates, float]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="update")

    @property
    def num_waiting(self) -> int:
        """Users that wait for a batch."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Users of the batch that the thread computes."""
        return len(self._running)

    @property
    def is_ready(self) -> bool:
        """Whether `finish_batch` would return at once."""
        return self._result is None or self._result.done()

    def add(self, name: str, user: MutableUser) -> None:
        """Add a user with too many pending events."""
        if name not in self._running:
            self._waiting[name] = user

    def __contains__(self, name: str) -> bool:
        return name in self._waiting or name in self._running

    def start_batch(self, max_users: int) -> None:
        """Finish the batch before, and give a new one of at most `max_users` users to the thread.

        Each user's memory is updated with the oldest full segment.
        """
        self.finish_batch()
        for name, user in list(self._waiting.items()):
            if len(self._running) == max_users:
                break
            if self._take(name, user):
                self._running[name] = user
        if self._running:
            self._read_states(self._running)
            inputs = self._updater.copy_inputs(list(self._running.values()))
            self._result = self._thread.submit(self._compute_timed, inputs)

    def finish_batch(self) -> None:
        """Wait for the running batch, and give its users their new states."""
        if self._result is None:
            return
        updated, seconds = self._result.result()
        users, self._running, self._result = self._running, {}, None
        self._install(users, updated)
        self.update_ms.append(seconds * 1e3 / len(users))

    def finish_all(self) -> None:
        """Update users until no segment is full."""
        self.finish_batch()
        while self._waiting:
            self.start_batch(batches.MAX_BATCH)
            self.finish_batch()

    def finish_user(self, name: str, user: MutableUser) -> None:
        """Update one user at once, ahead of all that wait."""
        if name in self._running:
            self.finish_batch()
        while name in self._waiting:
            if self._take(name, user):
                self._read_states({name: user})
                inputs = self._updater.copy_inputs([user])
                self._install({name: user}, self._updater.compute(inputs))

    def _take(self, name: str, user: MutableUser) -> bool:
        """Remove a user from those that wait; drop events that no read reaches any more.

        Returns:
          Whether the user has a segment to update the memory with.
        """
        del self._waiting[name]
        updates, drop = self._updater.plan(user)
        if not updates and drop:
            self._mark_changed(name, user)
            user.pending.drop(drop)
        return updates > 0

    def _compute_timed(self, inputs: UpdateInputs) -> tuple[UpdatedStates, float]:
        began = time.perf_counter()
        return self._updater.compute(inputs), time.perf_counter() - began

    def _install(self, users: dict[str, MutableUser], updated: UpdatedStates) -> None:
        for name, user in users.items():
            self._mark_changed(name, user)
        self._updater.install(list(users.values()), updated)
        self.num_updates += len(users)
        for name, user in users.items():
            if len(user.pending) >= self._updater.max_pending:
                self._waiting[name] = user
