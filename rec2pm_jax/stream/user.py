"""What is kept of one user between events: memory, the events not yet in it, and two numbers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Events, Params, State


class UserState(NamedTuple):
    """One user. Values are never changed in place, so old states stay valid.

    Attributes:
      state: `memory` [G * C, D] and `groups` int32 [], numpy: a row of a batch's `State`.
        `state.memory.nbytes` is what a user's memory costs (overwritten tokens: C * D * 4).
      pending: int32 [p] numpy fields, the newest p events, read raw: R <= p < R + S for memory
        methods with n >= R, min(n, read_length) for the others.
      events: n, events of the user so far.
      last_time: seconds since 1970 of the newest event that had a time, or None.
    """

    state: State
    pending: Events
    events: int
    last_time: int | None


class Step(NamedTuple):
    """How users' histories move on, elementwise over users.

    Attributes:
      updates: segments to fold, taken S events at a time from the front of the pending events.
      drop: events that leave the front of the pending events, folded or forgotten.
    """

    updates: np.ndarray
    drop: np.ndarray


def step_plan(method: Method, before: np.ndarray, after: np.ndarray) -> Step:
    """What happens when histories of `before` events grow to `after`: int [U] each.

    `method.plan` alone decides: `plan(n).updates` segments have been folded, and the pending events
    start at `plan(n).start`.
    """
    old, new = method.plan(np.asarray(before)), method.plan(np.asarray(after))
    return Step(new.updates - old.updates, new.start - old.start)


def empty_user(method: Method, params: Params, no_events: Events) -> UserState:
    """A user without events; `no_events` has fields [0]."""
    batch = method.init_state(params, 1)
    return UserState(jax.tree.map(lambda x: np.asarray(x)[0], batch), no_events, 0, None)


def join(first: Events, second: Events) -> Events:
    """Events of one user, one after the other."""
    return jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
