"""Synthetic users whose tastes show only in old events: the unit test of a memory.

The catalogue has departments of a few items each, and a user has one hidden favourite item (a
taste) in every department. A history of L events reads

    [0, E)      tastes show in triples, in random order: an occasion item o, then the favourites of
                departments 2 o and 2 o + 1
    [E, L)      session noise, with further triples at scattered positions

Session noise comes in short sessions on one topic; topics and their items have Zipf popularity, so
there is something to learn from the recent events and from popularity, too.

One occasion of a user, drawn at random, is rehearsed: its triple comes one to several times, more
than E events apart, from event 2 E on, and last at the end of the validation targets of `last_10`.
All but that last rehearsal come twice in a row: the second, predictable from recent events, teaches
a model quickly what an occasion asks for, and tells it nothing else. The other occasion comes once,
as the last three events, so that validation and test of `leave_one_out` are favourites that nothing
after event E has shown. Tastes are independent between departments, so the rehearsed ones say
nothing about them; as users rehearse either occasion, training teaches both.

Why a truncated reader cannot know the taste: the occasion says which department comes, but a reader
of the last S + R - 1 <= E events never sees an earlier favourite of that department (but for
repetitions, which are no targets of `leave_one_out` and `last_10`) and is left with a uniform guess
among its items. A reader of the whole history has seen the very item. Use K * S >= L, so that
training windows reach back to event 0.

With E = S the taste of the targets shows in segment 0 only. Ground truth (`ground_truth.npz`, users
in the order of the dataset; positions count events before any filter): favourites int32 [users,
departments] index item_raw_ids [items]; answer_positions int32 [users, A], in order, of the events
that tastes explain, and answer_departments likewise, both -1 where a user has fewer than A;
item_departments int32 [items], -1 for other items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

OCCASIONS = 2
DEPARTMENTS = 2 * OCCASIONS
ALTERNATIVES = 8  # items per department
TOPICS = 10
SESSION_EVENTS = 6  # mean length of a session
LAST_TARGETS = 10  # the rehearsed occasion comes last before these events
_TASTE_ITEMS = DEPARTMENTS * ALTERNATIVES
_START = 1_577_836_800  # 2020-01-01
_SESSION_GAP = 43_200  # mean seconds between sessions


class Shape(NamedTuple):
    """Sizes: users U, items, events per user L, events that show the taste E."""

    users: int
    items: int
    length: int
    taste_events: int


def load(options) -> Interactions:
    """Generates the data set; UserError for sizes that leave no room."""
    shape = Shape(
        options.synthetic_users,
        options.synthetic_items,
        options.synthetic_length,
        options.synthetic_taste_events,
    )
    _check(shape)
    rng = np.random.default_rng(options.seed)
    # Items are laid out as occasions, departments, noise.
    first = OCCASIONS + ALTERNATIVES * np.arange(DEPARTMENTS)
    tastes = first + rng.integers(ALTERNATIVES, size=(shape.users, DEPARTMENTS))
    items, starts = _session_noise(rng, shape)
    positions, departments = _place_occasions(rng, items, tastes, shape.taste_events)
    times = _times(rng, starts)
    names = np.array([f"item{i:06d}" for i in range(shape.items)])
    users = np.array([f"user{u:08d}" for u in range(shape.users)])
    events = pl.DataFrame(
        {
            "user": np.repeat(users, shape.length),
            "item": names[items.ravel()],
            "timestamp": times.ravel(),
        }
    )
    department = _item_departments(shape.items)
    return Interactions(
        events,
        _item_table(names, department),
        notes={**shape._asdict(), "seed": options.seed},
        ground_truth={
            "favourites": tastes.astype(np.int32),
            "answer_positions": positions.astype(np.int32),
            "answer_departments": departments.astype(np.int32),
            "item_raw_ids": names,
            "item_departments": department,
        },
    )


def _check(shape: Shape) -> None:
    smallest = OCCASIONS + _TASTE_ITEMS + 2 * TOPICS
    if shape.users < 1:
        raise UserError(f"--synthetic_users must be >= 1, got {shape.users}.")
    if shape.items < smallest:
        raise UserError(f"--synthetic_items must be >= {smallest}, got {shape.items}.")
    smallest = 3 * OCCASIONS
    if shape.taste_events < smallest:
        raise UserError(
            f"--synthetic_taste_events must be >= {smallest} (each occasion shows once), got "
            f"{shape.taste_events}."
        )
    shortest = 2 * LAST_TARGETS + 4 * shape.taste_events
    if shape.length < shortest:
        raise UserError(
            f"--synthetic_length must be >= {shortest} for --synthetic_taste_events="
            f"{shape.taste_events}, got {shape.length}: tastes must be old when they are needed."
        )


def _zipf(size: int) -> np.ndarray:
    weights = 1 / np.arange(1, size + 1)
    return weights / weights.sum()


def _session_noise(rng: np.random.Generator, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Returns items int64 [U, L] and whether each event starts a session, bool [U, L]."""
    size = (shape.users, shape.length)
    starts = rng.random(size) < 1 / SESSION_EVENTS
    starts[:, 0] = True
    session = np.cumsum(starts, axis=1) - 1
    topic = np.take_along_axis(rng.choice(TOPICS, size=size, p=_zipf(TOPICS)), session, axis=1)
    noise = np.arange(OCCASIONS + _TASTE_ITEMS, shape.items)
    items = np.zeros(size, np.int64)
    for t in range(TOPICS):
        members = noise[t::TOPICS]
        mask = topic == t
        items[mask] = rng.choice(members, size=mask.sum(), p=_zipf(len(members)))
    return items, starts


def _place_occasions(
    rng, items: np.ndarray, tastes: np.ndarray, taste_events: int
) -> tuple[np.ndarray, np.ndarray]:
    """Writes the triples; returns positions and departments of the items tastes explain."""
    users, length = items.shape
    # The taste shows: the occasions in turn, in random order, in E // 3 slots of three events.
    slots = rng.permuted(np.tile(np.arange(taste_events // 3), (users, 1)), axis=1)
    for slot in range(taste_events // 3 // OCCASIONS * OCCASIONS):
        _write(items, tastes, np.full(users, slot % OCCASIONS), 3 * slots[:, slot] + 3)

    rehearsed = rng.integers(OCCASIONS, size=users)
    asked = (rehearsed + 1) % OCCASIONS
    gap = taste_events + 4  # from a triple's repetition to the next: more than E events
    last = length - LAST_TARGETS
    latest = last - max(gap, LAST_TARGETS + 3)  # repetitions stay out of the validation targets
    first = rng.integers(2 * taste_events + 2, latest + 1, size=users)
    triples = []
    for end in _every(gap, first, latest):
        triples.append((rehearsed, end))
        _write(items, tastes, rehearsed, np.where(end >= 0, end + 3, -1))  # once more, at once
    triples += [(rehearsed, np.full(users, last)), (asked, np.full(users, length))]
    positions, departments = [], []
    for occasion, end in triples:
        _write(items, tastes, occasion, end)
        for half in range(2):
            positions.append(np.where(end >= 0, end - 2 + half, -1))
            departments.append(np.where(end >= 0, 2 * occasion + half, -1))
    return np.stack(positions, axis=1), np.stack(departments, axis=1)


def _write(items: np.ndarray, tastes: np.ndarray, occasion: np.ndarray, end: np.ndarray) -> None:
    """Puts one triple per user before position `end`; -1 leaves the user alone."""
    rows = np.flatnonzero(end >= 0)
    occasion, end = occasion[rows], end[rows]
    items[rows, end - 3] = occasion
    items[rows, end - 2] = tastes[rows, 2 * occasion]
    items[rows, end - 1] = tastes[rows, 2 * occasion + 1]


def _every(gap: int, first: np.ndarray, last: int) -> list[np.ndarray]:
    """first, first + gap, ... up to `last`, elementwise; -1 beyond it."""
    return [
        np.where(first + k * gap <= last, first + k * gap, -1)
        for k in range(1 + (last - int(first.min())) // gap)
    ]


def _times(rng: np.random.Generator, starts: np.ndarray) -> np.ndarray:
    """int64 [U, L], strictly increasing: about a minute, or hours between sessions."""
    gaps = np.where(
        starts,
        rng.exponential(_SESSION_GAP, size=starts.shape),
        rng.uniform(5, 120, size=starts.shape),
    )
    return _START + np.cumsum(1 + gaps.astype(np.int64), axis=1)


def _item_departments(items: int) -> np.ndarray:
    """Department of every item, int32 [items]; -1 for occasions and noise."""
    taste = np.arange(items) - OCCASIONS
    inside = (taste >= 0) & (taste < _TASTE_ITEMS)
    return np.where(inside, taste // ALTERNATIVES, -1).astype(np.int32)


def _item_table(names: np.ndarray, department: np.ndarray) -> pl.DataFrame:
    titles, categories = [], []
    for i, d in enumerate(department):
        if i < OCCASIONS:
            titles.append(f"occasion {i}")
            categories.append("occasion")
        elif d >= 0:
            titles.append(f"department {d} item {(i - OCCASIONS) % ALTERNATIVES}")
            categories.append(f"department {d}")
        else:
            titles.append(f"noise {i}")
            categories.append("noise")
    return pl.DataFrame({"item": names, "title": titles, "category": categories})
