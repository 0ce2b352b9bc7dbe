"""What a prepared dataset is like, before anybody trains on it.

Lengths and popularity are exact; everything that needs events comes from a sample of users, drawn
without regard to their length, of at most `max_events` events.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluate.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluate.histories import Histories, load_histories
from rec2pm_jax.evaluate.spec import EvalSpec

WINDOWS = (10, 25, 50, 100, 200, 400, 800)
RECENT = 50  # events that a short window reads
_CELLS = 4_000_000_000  # item scores computed for the window curve, half a minute or so
_MAX_WINDOW_USERS = 500


class SomeUsers:
    """Some users of a dataset, with as much of its interface as heuristics use."""

    def __init__(self, dataset, users: np.ndarray):
        self._dataset, self.users = dataset, users
        self.lengths, self.num_users = dataset.lengths[users], len(users)
        self.num_items, self.content_hash = dataset.num_items, dataset.content_hash
        self.info = dataset.info

    def sequence(self, index: int):
        return self._dataset.sequence(int(self.users[index]))


class WindowGain(NamedTuple):
    """NDCG@10 of personal frequency over windows of different length, validation targets.

    Attributes:
      protocol: last_10, or leave_one_out where hardly anybody is long enough.
      users: how many were ranked.
      windows: events counted, ascending; 0, last, is the whole history.
      ndcg: fractions of 1, one per window.
      popularity: that of the popularity ranking.
    """

    protocol: str
    users: int
    windows: tuple[int, ...]
    ndcg: tuple[float, ...]
    popularity: float


@dataclasses.dataclass(frozen=True)
class Inspection:
    """Figures of a dataset; E' events of U' sampled users.

    Attributes:
      lengths: int [U], events per user. counts: int [items], events per item, descending.
      events: E, in the whole dataset.
      sample: the sampled users' histories.
      position: int [E'], place of each event in its history, from 0.
      since: int [E'], events since the user's last event with the same item; 0: it is the first.
      gaps: int [E' - U'], seconds between neighbouring events of a user; None without times.
      times: int [E'], seconds since 1970; None without times.
      types: share of events by name of their type; empty without types.
      largest: raw id and length of the user with the longest history.
      top_item: title and count of the most popular item.
      ties: how equal times were ordered, "shuffle" or "keep".
      gain: None where nobody is long enough.
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
    ties: str
    gain: WindowGain | None


def inspect(dataset, max_events: int = 5_000_000, seed: int = 0) -> Inspection:
    """Looks at a dataset, in time bounded by the size of the sample and of the catalogue."""
    lengths = np.asarray(dataset.lengths, np.int64)
    order = np.random.default_rng(seed).permutation(len(lengths))
    fits = max(1, int(np.searchsorted(np.cumsum(lengths[order]), max_events, side="right")))
    sample = load_histories(dataset, np.sort(order[:fits]))
    sampled = np.diff(sample.offsets)
    position = np.arange(len(sample.ids)) - np.repeat(sample.offsets[:-1], sampled)
    gaps = None
    if sample.times is not None:
        gaps = np.diff(sample.times.astype(np.int64))[position[1:] > 0]
    types = {}
    if sample.types is not None:
        share = np.bincount(sample.types, minlength=len(dataset.event_types) + 1) / len(sample.ids)
        types = dict(zip(dataset.event_types, share[1:].tolist(), strict=True))
    longest = int(lengths.argmax())
    counts = np.asarray(dataset.items.counts[1:], np.int64)
    best = int(counts.argmax())
    return Inspection(
        lengths=lengths,
        counts=np.sort(counts)[::-1],
        events=int(lengths.sum()),
        sample=sample,
        position=position,
        since=events_since(sample, dataset.num_items),
        gaps=gaps,
        times=None if gaps is None else sample.times.astype(np.int64) + dataset.time_origin,
        types=types,
        largest=(dataset.user(longest), int(lengths[longest])),
        top_item=(dataset.items.titles[best + 1], int(counts[best])),
        ties=dataset.info["ties"]["rule"],
        gain=window_gain(dataset, seed),
    )


def events_since(sample: Histories, num_items: int) -> np.ndarray:
    """int64 [E'] events since the same user's last event with the same item, 0 for a first one."""
    user = np.repeat(np.arange(len(sample.users)), np.diff(sample.offsets))
    key = user * (num_items + 1) + sample.ids
    order = np.argsort(key, kind="stable")
    since = np.zeros(len(key), np.int64)
    again = key[order[1:]] == key[order[:-1]]
    since[order[1:][again]] = (order[1:] - order[:-1])[again]
    return since


def window_gain(dataset, seed: int = 0) -> WindowGain | None:
    """What longer windows are worth to personal frequency; popularity (of these users) breaks ties."""
    protocol = "last_10"
    if (dataset.lengths >= split_rule(protocol).min_events).mean() < 0.1:
        protocol = "leave_one_out"
    rule = split_rule(protocol)
    eligible = np.flatnonzero(dataset.lengths >= rule.min_events)
    if not len(eligible):
        return None
    windows = (*(w for w in WINDOWS if w < dataset.lengths.max()), 0)
    per_user = rule.count * len(windows) * (dataset.num_items + 1)
    most = int(np.clip(_CELLS // per_user, 20, _MAX_WINDOW_USERS))
    chosen = np.sort(np.random.default_rng(seed).permutation(eligible)[:most])
    some, data = SomeUsers(dataset, chosen), DataConfig(protocol=protocol)

    def score(name: str, **setting) -> float:
        found = evaluate_heuristic(Heuristic(name, **setting), some, EvalSpec("validation"), data)
        return found.metrics["ndcg@10"]

    ndcg = tuple(score("personal_frequency", window=window) for window in windows)
    return WindowGain(protocol, len(chosen), windows, ndcg, score("popularity"))
