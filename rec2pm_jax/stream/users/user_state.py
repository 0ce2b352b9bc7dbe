"""A user as an immutable value: what the public Python API takes and returns."""

from __future__ import annotations

from typing import NamedTuple

from rec2pm_jax.typing import Events, State


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
    """

    state: State
    pending: Events
    events: int
    last_time: int | None
