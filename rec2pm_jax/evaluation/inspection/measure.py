"""The numbers of an inspection.

Lengths and popularity are exact. Everything that needs events comes from a sample of users with at most
`max_events` events, drawn without regard to their length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.dataset import Dataset, UserSequence
from rec2pm_jax.data.splits import LAST_10, LEAVE_ONE_OUT
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.histories import Histories, load_histories
from rec2pm_jax.evaluation.spec import EvalSpec

WINDOWS = (10, 25, 50, 100, 200, 400, 800)
RECENT_EVENTS = 50  # events that a short window reads
_CELLS = 4_000_000_000  # item scores computed for the window curve: about half a minute
_MAX_WINDOW_USERS = 500


class DatasetSubset:
    """Some users of a dataset, with as much of its interface as heuristics use."""

    def __init__(self, dataset: Dataset, users: np.ndarray):
        self._dataset, self.users = dataset, users
        self.lengths, self.num_users = dataset.lengths[users], len(users)
        self.num_items, self.content_hash = dataset.num_items, dataset.content_hash
        self.info = dataset.info

    def sequence(self, index: int) -> UserSequence:
        """Return the events of the `index`-th of these users."""
        return self._dataset.sequence(int(self.users[index]))

    def sequences(self, indices: np.ndarray) -> list[UserSequence]:
        """Return the events of several of these users."""
        return self._dataset.sequences(self.users[indices])


class WindowCurve(NamedTuple):
    """NDCG@10 of personal frequency over windows of different length, on validation targets.

    Attributes:
      protocol: last_10, or leave_one_out where few users are long enough.
      users: number of ranked users.
      windows: newest events counted, ascending; 0, the last entry, is the whole history.
      ndcg: fractions of 1, one per window.
      popularity: NDCG@10 of the popularity ranking.
    """

    protocol: str
    users: int
    windows: tuple[int, ...]
    ndcg: tuple[float, ...]
    popularity: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Numbers of a dataset with U users and I items; E' events of U' users are sampled.

    Attributes:
      lengths: int64 [U], events per user.
      counts: int64 [I], events per item, descending.
      events: events in the whole dataset.
      sample: histories of the sampled users.
      position: int64 [E'], position of each event in its history, from 0.
      since: int64 [E'], events since the user's previous event of the same item; 0: there is none.
      gaps: int64 [E' - U'], seconds between a user's neighbouring events; None without times.
      times: int64 [E'], seconds since 1970; None without times.
      types: share of events by name of the event type; empty without types.
      largest: raw id and length of the user with the longest history.
      top_item: title and count of the most popular item.
      doubled: share of events that may be one action logged twice: the user's event before has the
        same item and type, and is at most a second older.
      ties: how events of equal time are ordered: "shuffle", "keep", or "key" for a finer key.
      sorted_ties: share of neighbours with equal time whose items ascend by raw id.
      curve: None where no user has enough events.
    """

    lengths: np.ndarray
    counts: np.ndarray
    events: int
    sample: Histories
    position: np.ndarray
    since: np.ndarray
    gaps: np.ndarray | None
    times: np.ndarray | None
    types: dict[str, float]
    largest: tuple[str, int]
    top_item: tuple[str, int]
    doubled: float
    ties: str
    sorted_ties: float
    curve: WindowCurve | None


def inspect_dataset(dataset: Dataset, max_events: int = 5_000_000, seed: int = 0) -> Inspection:
    """Measure a dataset. Sample size and catalogue size bound the time.

    Args:
      dataset: a prepared dataset.
      max_events: events of the sampled users; at least one user is sampled.
      seed: of the sample.

    Returns:
      The numbers.

    Raises:
      UserError: the files of the dataset are damaged.
    """
    lengths = np.asarray(dataset.lengths, np.int64)
    order = np.random.default_rng(seed).permutation(len(lengths))
    most = min(max_events, int(lengths.sum()))
    fits = max(1, int(np.searchsorted(np.cumsum(lengths[order]), most, side="right")))
    sample = load_histories(dataset, np.sort(order[:fits]))
    sampled = np.diff(sample.offsets)
    position = np.arange(len(sample.ids)) - np.repeat(sample.offsets[:-1], sampled)
    times = gaps = None
    if sample.times is not None:
        gaps = np.diff(sample.times.astype(np.int64))[position[1:] > 0]
        times = sample.times.astype(np.int64) + dataset.time_origin
    types = {}
    if sample.types is not None:
        share = np.bincount(sample.types, minlength=len(dataset.event_types) + 1) / len(sample.ids)
        types = dict(zip(dataset.event_types, share[1:].tolist(), strict=True))
    longest = int(lengths.argmax())
    since = count_events_since(sample, dataset.num_items)
    counts = np.asarray(dataset.items.counts[1:], np.int64)
    best = int(counts.argmax())
    return Inspection(
        lengths=lengths,
        counts=np.sort(counts)[::-1],
        events=int(lengths.sum()),
        sample=sample,
        position=position,
        since=since,
        gaps=gaps,
        times=times,
        types=types,
        largest=(dataset.user(longest), int(lengths[longest])),
        top_item=(dataset.items.titles[best + 1], int(counts[best])),
        doubled=measure_doubled(sample, since),
        ties="key" if dataset.info.get("order_key") else dataset.info["ties"]["rule"],
        sorted_ties=measure_sorted_ties(sample, position, dataset.items.raw_ids),
        curve=measure_windows(dataset, seed),
    )


def count_events_since(sample: Histories, num_items: int) -> np.ndarray:
    """Count the events since the same user's previous event of the same item.

    Returns:
      int64 [E']; 0 for the first event of an item.
    """
    user = np.repeat(np.arange(len(sample.users)), np.diff(sample.offsets))
    key = user * (num_items + 1) + sample.ids
    order = np.argsort(key, kind="stable")
    since = np.zeros(len(key), np.int64)
    again = key[order[1:]] == key[order[:-1]]
    since[order[1:][again]] = (order[1:] - order[:-1])[again]
    return since


def measure_doubled(sample: Histories, since: np.ndarray) -> float:
    """Return the share of events that may be one action logged twice; see `Inspection.doubled`."""
    doubled = since[1:] == 1
    if sample.types is not None:
        doubled &= np.diff(sample.types) == 0
    if sample.times is not None:
        doubled &= np.diff(sample.times) <= 1
    return float(doubled.sum() / max(1, len(since)))


def measure_sorted_ties(sample: Histories, position: np.ndarray, raw_ids: Sequence[str]) -> float:
    """Return the share of neighbours with equal time whose items ascend by raw id; 0 without ties.

    Numbers ascend as numbers. Neighbours of the same item do not count.
    """
    if sample.times is None:
        return 0.0
    tied = (position[1:] > 0) & (np.diff(sample.times) == 0) & (np.diff(sample.ids) != 0)
    if not tied.any():
        return 0.0
    order = sorted(range(1, len(raw_ids)), key=lambda i: (len(raw_ids[i]), raw_ids[i]))
    if not all(raw.isdecimal() for raw in raw_ids[1:]):
        order = sorted(range(1, len(raw_ids)), key=raw_ids.__getitem__)
    rank = np.zeros(len(raw_ids), np.int64)
    rank[order] = np.arange(len(order))
    return float((np.diff(rank[sample.ids])[tied] > 0).mean())


def measure_windows(dataset: Dataset, seed: int = 0) -> WindowCurve | None:
    """Measure how much personal frequency gains from longer windows.

    Popularity among the ranked users breaks ties.

    Args:
      dataset: a prepared dataset.
      seed: of the sample of users.

    Returns:
      The curve, or None where no user has enough events for leave_one_out.
    """
    rule = LAST_10
    if (dataset.lengths >= rule.min_events).mean() < 0.1:
        rule = LEAVE_ONE_OUT
    eligible = np.flatnonzero(dataset.lengths >= rule.min_events)
    if not len(eligible):
        return None
    windows = (*(w for w in WINDOWS if w < dataset.lengths.max()), 0)
    per_user = rule.count * len(windows) * (dataset.num_items + 1)
    most = int(np.clip(_CELLS // per_user, 20, _MAX_WINDOW_USERS))
    chosen = np.sort(np.random.default_rng(seed).permutation(eligible)[:most])
    subset, data = DatasetSubset(dataset, chosen), DataConfig(protocol=rule.name)

    def score(name: str, **setting: Any) -> float:
        heuristic = Heuristic(name, **setting)
        found = evaluate_heuristic(heuristic, subset, EvalSpec("validation"), data)
        return found.metrics["ndcg@10"]

    ndcg = tuple(score("personal_frequency", window=window) for window in windows)
    return WindowCurve(rule.name, len(chosen), windows, ndcg, score("popularity"))
