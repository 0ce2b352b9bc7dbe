"""Noise in the archive: how much does a method lose when old events are replaced at evaluation?

The paper's claim is that compression filters noise (an information bottleneck), so that memory should
lose less than reading everything.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.hashing import mix
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.targets import Histories, Targets
from rec2pm_jax.methods.segments import archived

KINDS = ("random", "popular")
_UNIT = 2.0**-64


@dataclasses.dataclass(frozen=True)
class Noise:
    """Replaces archived events; a callable for `evaluator.evaluate`.

    Noisy are events before archived(n) of the user's first target, n events in: what is in memory for
    every target, whichever the method, so that `full` and `recent` read the same noisy history.
    Whether an event is replaced depends on (seed, user, position) alone and is nested: what 10 % of
    noise replaces, 30 % replaces too, by the same item.

    Attributes:
      kind: the new item is drawn uniformly ("random") or by frequency ("popular").
      fraction: share of replaced events, in [0, 1].
      data: segment arithmetic.
      popularity: float [V], proportional to training events per item, 0 at padding.

    Raises:
      UserError: an unknown kind or a fraction outside [0, 1].
    """

    kind: str
    fraction: float
    data: DataConfig
    popularity: np.ndarray
    seed: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"noise {self.kind!r} is unknown; choose one of {', '.join(KINDS)}.")
        if not 0 <= self.fraction <= 1:
            raise UserError(f"The fraction of noise must be in [0, 1], got {self.fraction}.")

    def __call__(self, histories: Histories, targets: Targets) -> Histories:
        """The histories with noise; times and event types stay."""
        lengths = np.diff(histories.offsets)
        first = lengths.copy()
        np.minimum.at(first, targets.user, targets.position)
        boundary = archived(first, self.data.segment, self.data.recent)
        position = np.arange(len(histories.ids)) - np.repeat(histories.offsets[:-1], lengths)
        user = np.repeat(histories.users, lengths)
        # Drawn apart, so that who is replaced does not depend on by what.
        chosen = mix(self.seed, user, position, np.zeros_like(user)) * _UNIT < self.fraction
        chosen &= position < np.repeat(boundary, lengths)
        draw = mix(self.seed, user, position, np.ones_like(user))[chosen] * _UNIT
        weights = self.popularity[1:]
        if self.kind == "random":
            weights = np.ones_like(weights)
        cumulative = np.cumsum(weights / weights.sum())
        items = 1 + np.minimum(np.searchsorted(cumulative, draw, "right"), len(weights) - 1)
        ids = histories.ids.copy()
        ids[chosen] = items
        return histories._replace(ids=ids)
