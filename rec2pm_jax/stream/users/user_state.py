"""A user as an immutable value: what the public Python API takes and returns."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.exact_memory import MAX_CLOCK
from rec2pm_jax.nn.gaps import MINUTE
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Array, Events, State


class UserState(NamedTuple):
    """Everything that a model keeps of one user.

    Values are never changed in place, so old states stay valid.

    Attributes:
      state: a row of a batch's `State` as numpy: `memory` float32 [G * C, D], `groups` and `segments`
        int32 []. `state.memory.nbytes` is the size of the memory (C * D * 4 with overwriting).
      pending: the newest p events, read raw: numpy fields int32 [p]. R <= p < R + S for methods with
        memory once n >= R, and p = min(n, read_length) for the others.
      events: n, how many events the user has had.
      last_time: seconds since 1970 of the newest event that had a time, or None.
      time_origin: seconds since 1970 of time 0 of the pending events and of the exact memory.
      seen: what the user has seen; None where that is not kept.
    """

    state: State
    pending: Events
    events: int
    last_time: int | None
    time_origin: int = 0
    seen: SeenItems | None = None

    def with_time_origin(self, origin: int, clocks_are_times: bool) -> UserState:
        """Return the same user with times relative to another origin.

        Args:
          origin: seconds since 1970. That of a dataset moves when an older log is appended.
          clocks_are_times: whether the exact memory counts minutes, see `Config.uses_times`, and not
            events.
        """
        if origin == self.time_origin:
            return self
        pending, state = self.pending, self.state
        if pending.times is not None:
            pending = pending._replace(times=shift_times(pending.times, self.time_origin, origin))
        if clocks_are_times:  # they count minutes, so they follow to the minute
            exact, moved = state.exact, (self.time_origin - origin) // MINUTE
            last = np.where(exact.items, np.clip(exact.last + moved, 0, MAX_CLOCK), 0)
            state = state._replace(exact=exact._replace(last=cast(Array, last.astype(np.int32))))
        return self._replace(state=state, pending=pending, time_origin=origin)


def shift_times(times: Array, old: int, new: int) -> Array:
    """Return times relative to an origin `new` instead of `old`, both seconds since 1970; int32 [n].

    Raises:
      UserError: int32 does not hold them.

    >>> import numpy as np
    >>> shift_times(np.array([5, 6], np.int32), old=100, new=90)
    array([15, 16], dtype=int32)
    """
    shifted = np.asarray(times, np.int64) + (old - new)
    if len(shifted) and np.abs(shifted).max() >= 2**31:
        raise UserError(
            f"Events of a user lie more than 68 years from {new} seconds after 1970, the first event "
            "of the data: this model cannot represent both."
        )
    return cast(Array, shifted.astype(np.int32))
