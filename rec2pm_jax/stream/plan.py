"""From what a caller asks to numbers: raw ids, categories, event types and times are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from rec2pm_jax.errors import nearest
from rec2pm_jax.methods.windows import UNKNOWN_TIME
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.lines.events import (
    MALFORMED,
    UNKNOWN_ITEM,
    UNKNOWN_TYPE,
    RawIds,
    RejectedInput,
    parse_count,
    parse_ids,
)
from rec2pm_jax.stream.lines.requests import (
    NO_FILTERS,
    Filters,
    ItemGroup,
    RawFilters,
    SeenRule,
    parse_filters,
)
from rec2pm_jax.stream.options import DAY_S
from rec2pm_jax.stream.search import Asked, Search, SeenSelection
from rec2pm_jax.stream.users.seen import SeenItems
from rec2pm_jax.typing import Array


def plan_search(
    catalogue: Catalogue,
    k: int,
    exclude: RawIds = (),
    filters: RawFilters = NO_FILTERS,
    time: int | None = None,
) -> Search:
    """Check a request.

    Args:
      k: items wanted.
      exclude: raw ids of items that must not be recommended; unknown ones are ignored.
      filters: what else may not be recommended.
      time: of the request, seconds since 1970, if it is known.

    Raises:
      RejectedInput: `k` is not between 1 and the number of items, or a filter names an item,
        event type or category that does not exist.
    """
    k, filters = parse_count(k, "k"), parse_filters(filters, catalogue.rules)
    if not 1 <= k <= catalogue.num_items:
        raise RejectedInput(
            MALFORMED, f"k={k}, but it must be between 1 and the {catalogue.num_items} items"
        )
    excluded = catalogue.known_ids(parse_ids(exclude, "exclude", catalogue.rules))
    candidates = filters.candidates
    return Search(
        k,
        excluded,
        None
        if filters.exclude_seen is None
        else _select_seen(catalogue, filters.exclude_seen, time),
        _find_blocked(catalogue, filters),
        None if candidates is None else _ids_of(catalogue, candidates, "candidates"),
    )


def _select_seen(catalogue: Catalogue, rule: SeenRule, time: int | None) -> SeenSelection:
    since = None
    if rule.days is not None:
        if time is None:
            raise RejectedInput(MALFORMED, '"exclude_seen" by days needs the time of the request')
        since = time - rule.days * DAY_S
    if rule.types is None:
        return SeenSelection(None, since)
    for kind in rule.types:
        if kind not in catalogue.event_types:
            known = ", ".join(catalogue.event_types) or "none: the data has no event types"
            raise RejectedInput(
                UNKNOWN_TYPE,
                f'"exclude_seen": event type {kind!r} is unknown; known are {known}',
            )
    return SeenSelection(frozenset(map(catalogue.type_id, rule.types)), since)


def _find_blocked(catalogue: Catalogue, filters: Filters) -> np.ndarray | None:
    """Return what `allow` and `deny` leave out: bool [V], or None for nothing."""
    if filters.allow is None and not any(filters.deny):
        return None
    blocked = np.full(catalogue.num_items + 1, filters.allow is not None)
    if filters.allow is not None:
        blocked[_members(catalogue, filters.allow, "allow")] = False
    blocked[_members(catalogue, filters.deny, "deny")] = True
    return blocked


def _members(catalogue: Catalogue, group: ItemGroup, field: str) -> np.ndarray:
    """Return the ids of a group of items: int32 [n]."""
    members = [_ids_of(catalogue, group.items, field)]
    for name in group.categories:
        if name not in catalogue.category_ids:
            what = "is unknown" if catalogue.category_ids else "is unknown: the items have none"
            raise RejectedInput(
                UNKNOWN_ITEM,
                f'"{field}": category {name!r} {what}.{nearest(name, catalogue.category_ids)}',
            )
        members.append(catalogue.category_ids[name])
    return np.concatenate(members)


def _ids_of(catalogue: Catalogue, raw_ids: Sequence[str], field: str) -> np.ndarray:
    """Return the ids of raw ids, which must exist: int32 [n]."""
    ids = [catalogue.items.id_of(raw) for raw in raw_ids]
    for raw, found in zip(raw_ids, ids, strict=True):
        if found is None:
            raise RejectedInput(
                UNKNOWN_ITEM, f'"{field}": item {raw!r} is not in the training data'
            )
    return np.array(ids, np.int32)


def ask(
    catalogue: Catalogue,
    time: int | None,
    search: Search,
    seen: Sequence[SeenItems | None],
    *,
    always: bool = False,
) -> Asked:
    """Return a request of several users as numbers.

    Args:
      time: of the request, seconds since 1970, or None if it is not known.
      search: the request.
      seen: what each user has seen.
      always: see `Search.item_filter`.
    """
    return Asked(request_times(catalogue, time, len(seen)), search.item_filter(seen, always))


def request_times(catalogue: Catalogue, time: int | None, users: int) -> Array | None:
    """Return the time of a request of several users, as `Asked.time` has it.

    Args:
      catalogue: its model may read no times; then the result is None.
      time: seconds since 1970, or None if it is not known.
      users: how many.
    """
    if not catalogue.uses_times:
        return None
    asked = UNKNOWN_TIME if time is None else catalogue.encode_time(time)
    return cast(Array, np.full(users, asked, np.int32))
