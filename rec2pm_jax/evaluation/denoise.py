"""Replace archived events by noise at evaluation, to measure how much each method loses.

The paper's claim is that compression filters noise (an information bottleneck), so that memory
should lose less than reading everything.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.hashing import mix
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.targets import Targets
from rec2pm_jax.methods.segments import archived

KINDS = ("random", "popular")
_UNIT = 2.0**-64


@dataclasses.dataclass(frozen=True)
class Noise:
    """Replaces archived events; a value for `EvalSpec.corrupt`.

    Noise falls on the events before archived(n), where n is the position of the user's first
    target. These events are in memory for every target, whichever the method. So `full` and
    `recent` read the same noisy history.

    Whether an event is replaced depends on (seed, user, position) only. Noise is nested: what 10 %
    of noise replaces, 30 % replaces too, by the same item.

    Attributes:
      kind: whether the new item is drawn uniformly ("random") or by frequency ("popular").
      fraction: share of replaced events, in [0, 1].
      data: segment length and number of recent events.
      popularity: float [V], proportional to training events per item, 0 at padding.
      seed: seed of the noise.

    Raises:
      UserError: an unknown kind or a fraction outside [0, 1].
    """

    kind: str
    fraction: float
    data: DataConfig
    popularity: np.ndarray
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"noise {self.kind!r} is unknown; choose one of {', '.join(KINDS)}.")
        if not 0 <= self.fraction <= 1:
            raise UserError(f"The fraction of noise must be in [0, 1], got {self.fraction}.")

    def __call__(self, histories: Histories, targets: Targets) -> Histories:
        """Return the histories with noise; times and event types stay."""
        lengths = np.diff(histories.offsets)
        first = lengths.copy()
        np.minimum.at(first, targets.user, targets.position)
        boundary = archived(first, self.data.segment, self.data.recent)
        position = np.arange(len(histories.ids)) - np.repeat(histories.offsets[:-1], lengths)
        user = np.repeat(histories.users, lengths)
        # Two draws, so that which events are replaced does not depend on the new items.
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
