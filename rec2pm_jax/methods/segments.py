"""Segment arithmetic: the one place that says which events are archived and which are read raw.

For a user with n events, segment length S and R >= 1 events always kept raw,

    archived(n) = S * max(0, (n - R) // S)

events [0, archived(n)) are in memory after archived(n) / S updates and events [archived(n), n) are
read raw, so that R <= n - archived(n) < R + S once n >= R. Training windows, offline evaluation and
streaming all call these functions (numpy or Python integers).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec2pm_jax.config import Config, DataConfig

UNLIMITED = 1 << 20  # segments: longer than any history


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


def archived(n, segment: int, recent: int):
    """Number of archived events of a history of `n` events (int or int array)."""
    return segment * np.maximum(0, (np.asarray(n) - recent) // segment)


def plan_memory(n, data: DataConfig, max_segments: int = 0) -> ReadPlan:
    """Memory methods: fold every archived segment (the newest `max_segments` if > 0), read the rest."""
    start = archived(n, data.segment, data.recent)
    segments = start // data.segment
    updates = np.minimum(segments, max_segments) if max_segments else segments
    return ReadPlan(updates, segments - updates, start)


def plan_last(n, length: int) -> ReadPlan:
    """Methods without memory read the last `length` events."""
    n = np.asarray(n)
    zeros = np.zeros_like(n)
    return ReadPlan(zeros, zeros, np.maximum(0, n - length))


def slot_horizons(config: Config) -> tuple[int, ...]:
    """Segments that each memory slot looks back, C numbers >= 1.

    With `method.horizons` slot c looks back over K / 2^c segments (c modulo 4), slots 0, 4, ... over
    all; without it every slot does. Slots that see the same events with the same weights become copies
    of each other; these hold tastes of the last weeks beside that of a lifetime (not in the paper).
    Slots that keep a part of item vectors (`method.sketch`) differ anyway and look back over all.
    """
    method, segments = config.method, config.data.segments

    def horizon(c: int) -> int:
        whole = not method.horizons or c < method.sketch or c % 4 == 0
        return UNLIMITED if whole else max(segments >> c % 4, 1)

    return tuple(horizon(c) for c in range(method.slots))
