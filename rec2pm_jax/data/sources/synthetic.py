"""Synthetic users whose tastes show only in old events: a unit test of memory.

The catalogue has two departments of eight kinds of two items each, a cue item, and noise. A user has
one hidden kind (a taste) in either department; items of a taste are drawn uniformly. A history of L
events reads

    [0, E)      the tastes show: half of the events are items of the two tastes, half are noise
    [E, L)      session noise, and occasional triples: the cue, an item of the first taste, an item of
                the second

Session noise comes in short sessions on one topic. Topics and their items have Zipf popularity, so
recent events and popularity are informative, too. Triples start at event 2 E, more than E events
apart. The last one ends the history, so its two answers are the validation and the test target of
`leave_one_out`.

A reader of the last S + R - 1 <= E events cannot know the taste. It never sees an earlier triple, and
the first answer is independent of the second. So it guesses among a department's sixteen items (NDCG@10
.28). A reader of the whole history guesses among two (.82). Use K * S >= L, so that training windows
reach back to event 0.

Ground truth is in `ground_truth.npz`, with users in the order of the dataset. Positions count events
before any filter.

    tastes              int32 [users, 2], kind of the user in each department
    answer_positions    int32 [users, A], ascending, first and second department in turn; -1 where a
                        user has fewer than A
    item_raw_ids        [items]
    item_departments    int32 [items]; -1 for the cue and noise
    item_kinds          int32 [items]; -1 for the cue and noise
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.errors import UserError

DEPARTMENTS = 2
KINDS = 8  # tastes per department
ITEMS_PER_KIND = 2
CUE = 0  # item index; departments follow it, then noise
TOPICS = 10
MAX_SIZE = 10**9  # of users, items and events per user
SESSION_EVENTS = 6  # mean length of a session
_TASTE_ITEMS = DEPARTMENTS * KINDS * ITEMS_PER_KIND
_START = 1_577_836_800  # 2020-01-01
_SESSION_GAP = 43_200  # mean seconds between sessions


class Shape(NamedTuple):
    """Sizes of the dataset.

    Attributes:
      users: U.
      items: catalogue size, the cue and noise included.
      length: L, events per user.
      taste_events: E, first events of a user, which show the taste.
    """

    users: int
    items: int
    length: int
    taste_events: int


def load(options: PrepareOptions) -> Interactions:
    """Generate the dataset; UserError for sizes that are too small."""
    shape = Shape(
        options.synthetic_users,
        options.synthetic_items,
        options.synthetic_length,
        options.synthetic_taste_events,
    )
    _check_shape(shape)
    rng = np.random.default_rng(options.seed)
    tastes = rng.integers(KINDS, size=(shape.users, DEPARTMENTS))
    items, starts = _make_session_noise(rng, shape)
    _show_tastes(rng, items, tastes, shape.taste_events)
    positions = _place_triples(rng, items, tastes, shape.taste_events)
    times = _draw_times(rng, starts)
    names = np.array([f"item{i:06d}" for i in range(shape.items)])
    users = np.array([f"user{u:08d}" for u in range(shape.users)])
    events = pl.DataFrame(
        {
            "user": np.repeat(users, shape.length),
            "item": names[items.ravel()],
            "timestamp": times.ravel(),
        }
    )
    department, kind = _find_item_kinds(shape.items)
    return Interactions(
        events,
        _make_item_table(names, department, kind),
        notes={**shape._asdict(), "seed": options.seed},
        ground_truth={
            "tastes": tastes.astype(np.int32),
            "answer_positions": positions.astype(np.int32),
            "item_raw_ids": names,
            "item_departments": department,
            "item_kinds": kind,
        },
    )


def _check_shape(shape: Shape) -> None:
    smallest = 1 + _TASTE_ITEMS + 2 * TOPICS
    for name, size in shape._asdict().items():
        if size > MAX_SIZE:
            raise UserError(f"--synthetic_{name} must be at most {MAX_SIZE}, got {size}.")
    if shape.users < 1:
        raise UserError(f"--synthetic_users must be >= 1, got {shape.users}.")
    if shape.items < smallest:
        raise UserError(f"--synthetic_items must be >= {smallest}, got {shape.items}.")
    if shape.taste_events < 2 * DEPARTMENTS:
        raise UserError(
            f"--synthetic_taste_events must be >= {2 * DEPARTMENTS} (half of them show the tastes), "
            f"got {shape.taste_events}."
        )
    shortest = 4 * shape.taste_events
    if shape.length < shortest:
        raise UserError(
            f"--synthetic_length must be >= {shortest} for --synthetic_taste_events="
            f"{shape.taste_events}, got {shape.length}: tastes must be old when they are needed."
        )


def _zipf_weights(size: int) -> np.ndarray:
    weights = 1 / np.arange(1, size + 1)
    return weights / weights.sum()


def _make_session_noise(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return items int64 [U, L] and whether each event starts a session, bool [U, L]."""
    size = (shape.users, shape.length)
    starts = rng.random(size) < 1 / SESSION_EVENTS
    starts[:, 0] = True
    session = np.cumsum(starts, axis=1) - 1
    topic = np.take_along_axis(
        rng.choice(TOPICS, size=size, p=_zipf_weights(TOPICS)), session, axis=1
    )
    noise = np.arange(1 + _TASTE_ITEMS, shape.items)
    items = np.zeros(size, np.int64)
    for t in range(TOPICS):
        members = noise[t::TOPICS]
        mask = topic == t
        items[mask] = rng.choice(members, size=mask.sum(), p=_zipf_weights(len(members)))
    return items, starts


def _draw_items(rng: np.random.Generator, tastes: np.ndarray, department: int) -> np.ndarray:
    """Draw an item of each user's taste in a department: int64 [U]."""
    first = 1 + (department * KINDS + tastes[:, department]) * ITEMS_PER_KIND
    return first + rng.integers(ITEMS_PER_KIND, size=len(tastes))


def _show_tastes(
    rng: np.random.Generator, items: np.ndarray, tastes: np.ndarray, taste_events: int
) -> None:
    """Write items of the tastes, departments in turn, over half of the first events."""
    users = np.arange(len(items))
    places = rng.permuted(np.tile(np.arange(taste_events), (len(items), 1)), axis=1)
    for i in range(taste_events // 2):
        items[users, places[:, i]] = _draw_items(rng, tastes, i % DEPARTMENTS)


def _place_triples(
    rng: np.random.Generator, items: np.ndarray, tastes: np.ndarray, taste_events: int
) -> np.ndarray:
    """Write the triples; return the positions of their answers, int64 [U, A], -1 for none."""
    users, length = items.shape
    size = 1 + DEPARTMENTS
    last = length - size
    # At least E events of noise between triples keep an earlier one out of a window of E events.
    gap = taste_events + size
    start = np.asarray(2 * taste_events + rng.integers(gap, size=users))
    answers = []
    while (start <= last).any():
        start = np.where(start > last - gap, last, start)  # the last triple
        rows = np.flatnonzero(start <= last)
        items[rows, start[rows]] = CUE
        for department in range(DEPARTMENTS):
            items[rows, start[rows] + 1 + department] = _draw_items(rng, tastes[rows], department)
            answers.append(np.where(start <= last, start + 1 + department, -1))
        done = start == last
        start = np.where(done, length, start + gap + rng.integers(taste_events // 2, size=users))
    positions = np.stack(answers, axis=1)
    # Users have different numbers of triples: answers first, -1 after them.
    order = np.argsort(positions < 0, axis=1, kind="stable")
    return np.take_along_axis(positions, order, axis=1)


def _draw_times(rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
    """Draw increasing times, int64 [U, L]: gaps of a minute, and of hours between sessions."""
    gaps = np.where(
        starts,
        rng.exponential(_SESSION_GAP, size=starts.shape),
        rng.uniform(5, 120, size=starts.shape),
    )
    return _START + np.cumsum(1 + gaps.astype(np.int64), axis=1)


def _find_item_kinds(items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return department and kind of every item, int32 [items] each; -1 for the cue and noise."""
    taste = np.arange(items) - 1
    inside = (taste >= 0) & (taste < _TASTE_ITEMS)
    department, kind = np.divmod(taste // ITEMS_PER_KIND, KINDS)
    department, kind = np.where(inside, department, -1), np.where(inside, kind, -1)
    return department.astype(np.int32), kind.astype(np.int32)


def _make_item_table(names: np.ndarray, department: np.ndarray, kind: np.ndarray) -> pl.DataFrame:
    titles, categories = [], []
    for i, (d, k) in enumerate(zip(department, kind, strict=True)):
        category = "cue" if i == CUE else f"department {d}" if d >= 0 else "noise"
        detail = f" kind {k} item {(i - 1) % ITEMS_PER_KIND}" if d >= 0 else f" {i}"
        titles.append(category + detail)
        categories.append(category)
    return pl.DataFrame({"item": names, "title": titles, "category": categories})


SOURCE = Source(
    name="synthetic",
    description="Generated users whose taste shows in their first events only: a test of memory",
    licence="None needed: nothing is read.",
    load=load,
    by_hand="generated",
)
