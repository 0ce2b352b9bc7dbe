"""Events of one user and of several, as a dataset returns them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.data.histories import Histories, group_users

BLOCK_EVENTS = 1_000_000  # of consecutive users, read at a time


class UserSequence(NamedTuple):
    """One user's events, oldest first.

    Attributes:
      user: raw id.
      ids: int32 [n] item ids from 1.
      times: int32 [n] seconds since the dataset's time origin, or None without real times.
      types: int32 [n] event-type ids from 1, or None without event types.
    """

    user: str
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None


class EventBlock(NamedTuple):
    """The events of consecutive users.

    Attributes:
      users: the users [users.start, users.stop).
      offsets: int64 [U + 1]; user users.start + u has the events [offsets[u], offsets[u + 1]).
      ids: int32 [E] item ids from 1.
      times: int32 [E] seconds since the dataset's time origin, or None without real times.
      types: int8 [E] event-type ids from 1, or None without event types.
    """

    users: slice
    offsets: np.ndarray
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None


class FlatEvents(NamedTuple):
    """Where the events of some users are, in flat arrays that may hold other users, too.

    Attributes:
      firsts: int64 [n], place of each user's first event; the others follow.
      ids, times, types: as in `EventBlock`.
    """

    firsts: np.ndarray
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None


def read_in_order(dataset: Any) -> Iterator[UserSequence]:
    """Yield the sequences of all users, some users in memory at a time if files are read.

    Args:
      dataset: a `Dataset`, or a view of some of its users.
    """
    firsts = group_users(np.asarray(dataset.lengths, np.int64), BLOCK_EVENTS).firsts
    for first, stop in itertools.pairwise(firsts.tolist()):
        yield from dataset.sequences(np.arange(first, stop))


def cut_sequence(
    user: str, times: np.ndarray | None, histories: Histories, events: slice
) -> UserSequence:
    """Return the events of one user.

    Args:
      user: raw id.
      times: int32 [E] seconds since the time origin of all events, or None.
      histories: all events.
      events: which of them are the user's.
    """
    types = histories.types
    return UserSequence(
        user=user,
        ids=histories.ids[events],
        times=None if times is None else times[events],
        types=None if types is None else types[events].astype(np.int32),
    )
