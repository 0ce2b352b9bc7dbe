"""Settings of a model that the numbers of a dataset suggest, each with its reason."""

from __future__ import annotations

import numpy as np

from rec2pm_jax.config import DataConfig, MethodConfig
from rec2pm_jax.data.splits import LAST_10
from rec2pm_jax.evaluation.inspection.measure import Inspection

_MANY_REPEATS = 0.3  # of events are of an item the user had before
_LARGE_BASKETS = 0.95  # of gaps are zero
_HELD_OUT = 2 * LAST_10.count  # validation and test targets of a user


def suggest_settings(found: Inspection) -> list[str]:
    """Return flags of `launch.train`, each with its reason.

    Args:
      found: the numbers.

    Returns:
      One line per setting. A start for experiments, not an optimum.
    """
    return [
        _suggest_segments(found),
        _suggest_exact_memory(found),
        *_suggest_times(found),
        *_suggest_types(found),
    ]


def _suggest_segments(found: Inspection) -> str:
    """Choose segments that the training events of a quarter of the users fill."""
    usual = DataConfig()
    events = max(1, int(np.quantile(found.lengths, 0.75)) - _HELD_OUT)
    size = min(usual.segment, max(1, events // 2))
    count = int(np.clip(events // size, 1, usual.segments))
    return (
        f"--config.data.segment={size} --config.data.segments={count}: a quarter of the users have "
        f"{events:,} or more training events, which fill this window of {size * count}"
    )


def _suggest_exact_memory(found: Inspection) -> str:
    share = float((found.since > 0).mean())
    why = f"{share:.0%} of events are of an item the user had before"
    if share >= _MANY_REPEATS:
        return (
            f"--config.method.exact_entries={MethodConfig().exact_entries}: {why}, and an exact "
            "memory keeps which items these are"
        )
    return f"--config.method.exact_entries=0: only {why}, so tastes matter more than single items"


def _suggest_times(found: Inspection) -> list[str]:
    if found.gaps is None or not len(found.gaps):
        return []
    zero = float((found.gaps == 0).mean())
    if zero > _LARGE_BASKETS:
        return [
            f"--config.model.use_times=true: {zero:.0%} of gaps are zero, so times tell baskets"
        ]
    low, high = np.quantile(found.gaps[found.gaps > 0], [0.1, 0.9])
    if high < 10 * low:
        return [
            f"--config.model.use_times=false: gaps are alike, {low:.0f} to {high:.0f} s, so times tell "
            "no more than the order"
        ]
    return [
        f"--config.model.use_times=true: gaps differ by a factor of {high / low:,.0f}, so times tell "
        "more than the order"
    ]


def _suggest_types(found: Inspection) -> list[str]:
    if len(found.types) < 2:
        return []
    return [
        f"--config.model.event_types={len(found.types)}: events are of {len(found.types)} types"
    ]
