"""A synthetic log of any size, row by row from hashes: the input of the benchmark of preparation.

Histories are heavy-tailed. A user has floor(m X) events, at least 1 and at most 100 times the mean
--synthetic_length. X is Pareto with exponent 1.5, P(X > x) = x^-1.5. m is a third of the mean, which
makes the mean of m X the one asked for. Half of a user's events are of 20 favourites. All items are
drawn with a popularity of about 1 / rank. Times are uniform over a year.

Every event is a function of (seed, user, number of the event). Rows come in a scattered order, by an
affine map modulo their number. So the log is unsorted, and the batch size does not change a row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import polars as pl

from rec2pm_jax.data.hashing import mix
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.schema import Interactions, empty_items
from rec2pm_jax.data.sources.source import Source
from rec2pm_jax.data.sources.synthetic import MAX_SIZE
from rec2pm_jax.errors import UserError

EXPONENT = 1.5
FAVOURITES = 20
LONGEST = 100  # times the mean
_START = 1_577_836_800  # 2020-01-01
_SPAN = 365 * 86_400
_BATCH = 1_000_000
_LENGTH, _KIND, _SLOT, _ITEM, _TIME, _FAVOURITE = range(6)  # what a hash decides


def load(options: PrepareOptions) -> Interactions:
    """Generate the log; UserError for sizes below 1 or beyond `MAX_SIZE`."""
    for name in ("synthetic_users", "synthetic_items", "synthetic_length"):
        if not 1 <= getattr(options, name) <= MAX_SIZE:
            raise UserError(f"--{name} must be from 1 to {MAX_SIZE}, got {getattr(options, name)}.")
    users, items, mean = options.synthetic_users, options.synthetic_items, options.synthetic_length
    return Interactions(
        frames(users, items, mean, options.seed),
        empty_items(),
        notes={"users": users, "items": items, "mean_length": mean, "seed": options.seed},
    )


def lengths(users: int, mean: int, seed: int) -> np.ndarray:
    """Return the number of events of each user, int64 [users]."""
    uniform = _uniform(seed, np.arange(users), np.zeros(users, np.int64), _LENGTH)
    pareto = (1 - uniform) ** (-1 / EXPONENT)
    return np.clip(mean * (EXPONENT - 1) / EXPONENT * pareto, 1, LONGEST * mean).astype(np.int64)


def frames(
    users: int, items: int, mean: int, seed: int, batch: int = _BATCH
) -> Iterator[pl.DataFrame]:
    """Yield canonical events.

    Args:
      users: number of users.
      items: number of items.
      mean: events per user on average.
      seed: of all hashes.
      batch: rows at a time.
    """
    ends = np.cumsum(lengths(users, mean, seed))
    total = int(ends[-1])
    step = next(s for s in range(int(total * 0.618) | 1, 2 * total + 3) if math.gcd(s, total) == 1)
    user_names = pl.Series([f"u{u:09d}" for u in range(users)])
    item_names = pl.Series([f"i{i:08d}" for i in range(items)])
    for start in range(0, total, batch):
        rows = np.arange(start, min(start + batch, total))
        place = (rows * step) % total
        user = np.searchsorted(ends, place, side="right")
        event = ends[user] - place  # from 1
        favourite = _uniform(seed, user, event, _KIND) < 0.5
        slot = (_uniform(seed, user, event, _SLOT) * FAVOURITES).astype(np.int64)
        uniform = np.where(
            favourite,
            _uniform(seed, user, slot, _FAVOURITE),
            _uniform(seed, user, event, _ITEM),
        )
        item = np.minimum((items + 1.0) ** uniform - 1, items - 1).astype(np.int64)
        time = _START + (_uniform(seed, user, event, _TIME) * _SPAN).astype(np.int64)
        yield pl.DataFrame({"user": user_names[user], "item": item_names[item], "timestamp": time})


def _uniform(seed: int, user: np.ndarray, number: np.ndarray, what: int) -> np.ndarray:
    """Return a number in [0, 1) for each (user, number), float64 [n]; `what` is a purpose."""
    return (mix(seed, user, number, np.full(len(user), what)) >> np.uint64(11)) * 2.0**-53


SOURCE = Source(
    name="synthetic_log",
    description="A generated log of any size with heavy-tailed users: a test of preparation",
    licence="None needed: nothing is read.",
    load=load,
    by_hand="generated",
)
