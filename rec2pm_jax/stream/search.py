"""A checked request in numbers: how many items, and which ones a user may get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import jax
import numpy as np

from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter
from rec2pm_jax.stream.lines.events import MALFORMED, RejectedInput
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import PADDING_ID, Array

_MIN_WIDTH = 16  # of lists of items, so that short ones share a program


class SeenSelection(NamedTuple):
    """Which seen items are left out.

    Attributes:
      types: event-type ids that count; None for all.
      since: seconds since 1970 from which on events count; None for all.
    """

    types: frozenset[int] | None
    since: float | None

    def of(self, seen: SeenItems | None) -> np.ndarray:
        """Return the items that a user has seen: int32 [n].

        Raises:
          RejectedInput: it is not known what the user has seen, or when and how.
        """
        if seen is None:
            raise RejectedInput(
                MALFORMED,
                '"exclude_seen": this store does not keep what users have seen; make it with '
                "--seen=items or --seen=events",
            )
        if not seen.detailed and (self.types is not None or self.since is not None):
            raise RejectedInput(
                MALFORMED,
                '"exclude_seen" by types or days: this store keeps items without them; make it with '
                "--seen=events",
            )
        return seen.select(self.types, self.since)


class Search(NamedTuple):
    """A checked request.

    Attributes:
      k: how many items are wanted.
      excluded: sorted ids of items that no user of the request may get.
      seen: which seen items are left out; None: none.
      blocked: bool [V], true for items that `allow` and `deny` leave out; None: none.
      candidates: int32 [C], the only items that may be returned; None: all.
    """

    k: int
    excluded: np.ndarray
    seen: SeenSelection | None = None
    blocked: np.ndarray | None = None
    candidates: np.ndarray | None = None

    def item_filter(self, users: Sequence[SeenItems | None], always: bool = False) -> ItemFilter:
        """Return the filter of a batch of users, as numpy.

        Lists are padded to a power of two of at least 16, so few programs are compiled.

        Args:
          users: what each of them has seen; None where that is not kept.
          always: have a list of denied items even if none is denied, to compile one program less.

        Raises:
          RejectedInput: see `SeenSelection.of`.
        """
        denied = [self.excluded] * len(users)
        if self.seen is not None:
            denied = [np.union1d(self.excluded, self.seen.of(seen)) for seen in users]
        if self.candidates is not None:
            open_to_all = self.candidates
            if self.blocked is not None:
                open_to_all = open_to_all[~self.blocked[open_to_all]]
            left = [open_to_all[~np.isin(open_to_all, out)] for out in denied]
            return ItemFilter(candidates=_stack(left))
        if not (always or self.seen is not None or len(self.excluded)):
            return NO_FILTER._replace(blocked=cast(Array, self.blocked))
        return ItemFilter(_stack(denied), cast(Array, self.blocked))

    def keep_allowed(self, ids: np.ndarray) -> np.ndarray:
        """Return those of the ids that a user without events may get, in order."""
        kept = ~np.isin(ids, self.excluded)
        if self.blocked is not None:
            kept &= ~self.blocked[ids]
        if self.candidates is not None:
            kept &= np.isin(ids, self.candidates)
        return ids[kept]


class Asked(NamedTuple):
    """What the requests of a batch add to its users.

    Attributes:
      time: int32 [B], seconds since the time origin, or UNKNOWN_TIME; None for a model that reads no
        times.
      rule: which items they may get.
    """

    time: Array | None = None
    rule: ItemFilter = NO_FILTER

    def take(self, rows: np.ndarray) -> Asked:
        """Return the requests of some rows; arrays are numpy."""
        by_row = self.time, self.rule.denied, self.rule.candidates
        time, denied, candidates = jax.tree.map(lambda x: x[rows], by_row)
        return Asked(time, ItemFilter(denied, self.rule.blocked, candidates))

    def best_of(self, k: int, num_items: int) -> int:
        """Return how many items to find, so that few programs serve all `k`."""
        if self.rule.candidates is not None:
            return self.rule.candidates.shape[1]
        return min(1 << (k - 1).bit_length(), num_items)


def _stack(lists: Sequence[np.ndarray]) -> Array:
    """Return lists of ids as int32 [U, width], padded."""
    longest = max((len(ids) for ids in lists), default=0)
    width = max(_MIN_WIDTH, 1 << max(0, longest - 1).bit_length())
    table = np.full((len(lists), width), PADDING_ID, np.int32)
    for row, ids in zip(table, lists, strict=True):
        row[: len(ids)] = ids
    return cast(Array, table)
