"""Segment arithmetic: which events are archived in memory, and which are read raw.

For a user with n events, segment length S and R >= 1 events that always stay raw,

    archived(n) = S * max(0, (n - R) // S)

events [0, archived(n)) are in memory after archived(n) / S updates. Events [archived(n), n) are read
raw, so that R <= n - archived(n) < R + S once n >= R. Training windows, offline evaluation and
streaming all call these functions (numpy or Python integers).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rec2pm_jax.config import DataConfig


class ReadPlan(NamedTuple):
    """How a history of n events is served, elementwise over n.

    Attributes:
      updates: memory updates to fold, each over S events starting at `first_segment * S`.
      first_segment: index of the first folded segment (0 unless `max_segments` limits it).
      start: first raw event; events [start, n) are read.
    """

    updates: np.ndarray
    first_segment: np.ndarray
    start: np.ndarray


def archived(n: ArrayLike, segment: int, recent: int) -> np.ndarray:
    """Return the number of archived events of histories of `n` events.

    >>> archived([3, 25, 26, 51], segment=25, recent=1).tolist()
    [0, 0, 25, 50]
    """
    return segment * np.maximum(0, (np.asarray(n) - recent) // segment)


def plan_memory(n: ArrayLike, data: DataConfig, max_segments: int = 0) -> ReadPlan:
    """Plan methods with a memory: fold every archived segment, read the other events raw.

    Args:
      n: events of each history.
      data: S and R.
      max_segments: fold the newest `max_segments` archived segments only; 0: all.
    """
    start = archived(n, data.segment, data.recent)
    segments = start // data.segment
    updates = np.minimum(segments, max_segments) if max_segments else segments
    return ReadPlan(updates, segments - updates, start)


def plan_last(n: ArrayLike, length: int) -> ReadPlan:
    """Plan methods without memory: read the last `length` events."""
    n = np.asarray(n)
    zeros = np.zeros_like(n)
    return ReadPlan(zeros, zeros, np.maximum(0, n - length))
