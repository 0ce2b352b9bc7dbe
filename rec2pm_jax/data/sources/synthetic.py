"""Synthetic users whose tastes show only in old events: the unit test of a memory.

The catalogue has departments of a few items each, and a user has one hidden favourite item (a
taste) in every department. A history of L events reads

    [0, E)      tastes show: every favourite at least once, in random order, between session noise
    [E, L)      session noise, with OCCASIONS triples at scattered positions of the second half:
                an occasion item o, then the favourites of departments 2 o and 2 o + 1

Session noise comes in short sessions on one topic; topics and their items have Zipf popularity, so
there is something to learn from the recent events and from popularity, too.

Why a truncated reader cannot know the taste: the occasion says which department comes, but each
occasion occurs once per user and tastes are independent between departments, so nothing after
event E says which of the department's items it will be. A reader of the last S + R - 1 events is
left with a uniform guess among them as long as its window does not reach back to event E, that is,
for S + R - 1 <= L / 2 - E. A reader of the whole history has seen the very item.

Why the protocols see it: the last two events (validation and test of `leave_one_out`) are the two
items that follow the last occasion, and the occasion before ends at event L - 11, the last
validation target of `last_10`. The other occasions are for training, in windows that reach back to
event 0: use K * S >= L.

With E = S the taste shows in segment 0 only. Ground truth (`ground_truth.npz`, users in the order
of the dataset; positions count events before any filter): favourites int32 [users, departments]
index item_raw_ids [items]; answer_positions int32 [users, 2 * OCCASIONS] of the events that tastes
explain, answer_departments likewise; item_departments int32 [items], -1 for other items.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import polars as pl

from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.errors import UserError

OCCASIONS = 4
DEPARTMENTS = 2 * OCCASIONS
ALTERNATIVES = 8  # items per department
TOPICS = 10
SESSION_EVENTS = 6  # mean length of a session
VALIDATION_GAP = 10  # events between the last two occasions' ends
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
    _show_tastes(rng, items, tastes, shape.taste_events)
    positions, departments = _place_occasions(rng, items, tastes)
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
    if shape.taste_events < DEPARTMENTS:
        raise UserError(
            f"--synthetic_taste_events must be >= {DEPARTMENTS} (each department shows once), got "
            f"{shape.taste_events}."
        )
    shortest = max(4 * shape.taste_events, 8 * VALIDATION_GAP)
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


def _show_tastes(rng, items: np.ndarray, tastes: np.ndarray, taste_events: int) -> None:
    """Puts every taste at taste_events * 2/3 / DEPARTMENTS (at least one) of the first events."""
    users = len(items)
    shows = max(1, taste_events * 2 // 3 // DEPARTMENTS)
    order = rng.permuted(np.tile(np.arange(taste_events), (users, 1)), axis=1)
    slots = order[:, : shows * DEPARTMENTS]
    department = np.tile(np.arange(DEPARTMENTS), shows)
    np.put_along_axis(items, slots, tastes[:, department], axis=1)


def _place_occasions(rng, items: np.ndarray, tastes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Writes the triples; returns positions and departments of the items tastes explain."""
    users, length = items.shape
    occasion = rng.permuted(np.tile(np.arange(OCCASIONS), (users, 1)), axis=1)
    # The first OCCASIONS - 2 triples: one in each of equal stretches of the second half.
    edges = np.linspace(length // 2, length - 2 * VALIDATION_GAP, OCCASIONS - 1).astype(int)
    ends = [rng.integers(low + 3, high, size=users) for low, high in itertools.pairwise(edges)]
    ends += [np.full(users, length - VALIDATION_GAP), np.full(users, length)]
    rows = np.arange(users)
    positions, departments = [], []
    for number, end in enumerate(ends):
        items[rows, end - 3] = occasion[:, number]
        for half in range(2):
            department = 2 * occasion[:, number] + half
            position = end - 2 + half
            items[rows, position] = tastes[rows, department]
            positions.append(position)
            departments.append(department)
    return np.stack(positions, axis=1), np.stack(departments, axis=1)


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
