"""What a person may want to see of a service: its model, users, items, and reads side by side.

Functions of an engine, a user or a store belong into the thread that owns the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.serve.known_events import KnownHistory, PastEvent, begins_with_dataset
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import RawTime
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.outcomes import Recommendation
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import PADDING_ID

BOTH, MEMORY, RECENT = "memory and recent events", "memory only", "recent events only"
MAX_SCANNED = 10_000  # users of a store that a search looks at
UNKNOWN_TITLE = "unknown item"

Column = dict[str, Any]  # {"name", "items": [{"item", "title", "score"}], "note": only if needed}


# --- one user, read in three ways ---


def without_events(user: UserState) -> UserState:
    """Return a user whose read takes the memory alone.

    A read needs an event to ask from. This one is of no item: its vector is the mean of all events, as
    for items that the model does not know. It has the time and type of the first event after the
    memory. So the answer changes with the memory and the time of the request, not with recent events.

    Args:
      user: with at least one event.
    """
    first = jax.tree.map(lambda field: field[:1], user.pending)
    return user._replace(pending=first._replace(ids=np.full_like(first.ids, PADDING_ID)))


def without_memory(recommender: Recommender, user: UserState) -> UserState:
    """Return a user whose read takes the recent events alone: the memory is that of a new user."""
    return user._replace(state=recommender.new_user().state)


def compare_reads(
    recommender: Recommender, user: UserState, k: int, time: RawTime = None
) -> list[Column]:
    """Return what is recommended from memory and recent events, and from each of them alone.

    Args:
      recommender: of the user.
      user: with all updates.
      k, time: as in `Recommender.recommend`.

    Returns:
      A column for each read. The memory's is empty, with a note, where nothing is in it. A user without
      events has the first column only, and a model without memory that of the recent events only.

    Raises:
      RejectedInput, UserError: as `Recommender.recommend`.
    """
    if not user.events:
        note = "No events yet: these are the most frequent items."
        return [_column(BOTH, recommender.recommend(user, k, time=time), note)]
    if not recommender.method.stores_memory:
        return [_column(RECENT, recommender.recommend(user, k, time=time))]
    alone = without_events(user), without_memory(recommender, user)
    both, memory, recent = recommender.recommend_many([user, *alone], k, time=time)
    expected = _column(MEMORY, memory)
    if not user.state.segments:
        left = recommender.method.read_length + 1 - len(user.pending.ids)
        plural = "" if left == 1 else "s"
        expected = _column(MEMORY, [], f"Empty until {left} more event{plural}.")
    return [_column(BOTH, both), expected, _column(RECENT, recent)]


def _column(name: str, items: Sequence[Recommendation], note: str = "") -> Column:
    column: Column = {"name": name, "items": describe_items(items)}
    return column | {"note": note} if note else column


def describe_items(items: Sequence[Recommendation]) -> list[dict[str, Any]]:
    """Return recommendations as JSON has them."""
    return [item._asdict() for item in items]


def warm_up(recommender: Recommender, *, side_by_side: bool) -> None:
    """Compile what `compare_reads` needs, or what `Recommender.recommend` does for one user."""
    blank = recommender.catalogue.stack_codes([(PADDING_ID, 0, 1)])
    user = recommender.new_user()._replace(pending=blank, events=1)
    k = min(10, recommender.catalogue.num_items)
    if side_by_side:
        compare_reads(recommender, user, k)
    else:
        recommender.recommend(user, k)


# --- what there is ---


def describe_model(engine: Engine) -> dict[str, Any]:
    """Return what a page says of the model: its name and sizes, and what events need."""
    model = engine.recommender
    dataset, method = model.dataset, model.method
    stored = dataset.num_users if dataset is not None and begins_with_dataset(engine) else None
    return {
        "method": method.config.method.name,
        "dataset": None if dataset is None else dataset.info.get("source"),
        "items": model.catalogue.num_items,
        "users": stored,
        "segment": method.config.data.segment,
        "recent": method.config.data.recent,
        "read_length": method.read_length,
        "stores_memory": method.stores_memory,
        "uses_times": model.catalogue.uses_times,
        "event_types": list(model.catalogue.event_types) if model.catalogue.uses_types else [],
    }


def describe_user(
    engine: Engine, name: str, user: UserState, history: KnownHistory, limit: int
) -> dict[str, Any]:
    """Return the counts of a user and the newest events.

    Args:
      engine: that holds the user.
      name: raw id.
      user, history: what `KnownEvents.look_up` returned.
      limit: events at most.

    Returns:
      `user`, `events`, `updates`, `pending` (events that a read takes raw), and `last_events`, newest
      first, each with `item`, `title`, `time` and `type`; `item` is null where it was unknown.
    """
    newest = history.events[: -limit - 1 : -1]
    return {
        "user": name,
        "events": user.events,
        "updates": int(user.state.segments),
        "pending": len(user.pending.ids),
        "last_time": user.last_time,
        "last_events": [_describe_event(engine.recommender.catalogue, event) for event in newest],
    }


def _describe_event(catalogue: Catalogue, event: PastEvent) -> dict[str, Any]:
    title = UNKNOWN_TITLE
    if event.item is not None:
        found = catalogue.items.id_of(event.item)
        title = event.item if found is None else catalogue.items.titles[found]
    return {"item": event.item, "title": title, "time": event.time, "type": event.type}


def find_items(recommender: Recommender, search: str, limit: int) -> list[dict[str, str]]:
    """Return items whose title or id contains a text, the most frequent first.

    Args:
      recommender: whose items.
      search: in any case; empty: all items.
      limit: items at most.
    """
    items, wanted = recommender.catalogue.items, search.casefold()
    found = (
        {"item": items.raw_ids[i], "title": items.titles[i]}
        for i in recommender.popular_items[1].tolist()
        if wanted in items.titles[i].casefold() or wanted in items.raw_ids[i].casefold()
    )
    return list(islice(found, limit))


def find_users(
    dataset: Dataset,
    search: str,
    limit: int,
    worker: Worker = Worker(),  # noqa: B008 (immutable)
) -> list[dict[str, Any]]:
    """Return users of a dataset whose id begins with a text.

    Args:
      dataset: whose users.
      search: the start of an id; empty: any user.
      limit: users at most.
      worker: whose users.

    Returns:
      `user` and `events` of each, in the order of ids.
    """
    names = ((index, dataset.user(index)) for index in range(len(dataset)))
    found = (
        {"user": name, "events": int(dataset.lengths[index])}
        for index, name in names
        if name.startswith(search) and (worker.count == 1 or worker.owns(name))
    )
    return list(islice(found, limit))


def find_stored_users(
    store: Store,
    search: str,
    limit: int,
    worker: Worker = Worker(),  # noqa: B008 (immutable)
) -> list[dict[str, Any]]:
    """Do as `find_users` for the first `MAX_SCANNED` users of a store; `events` is null."""
    names = (name for name, _ in islice(store.items(), MAX_SCANNED))
    stored = (
        {"user": name, "events": None}
        for name in names
        if name.startswith(search) and (worker.count == 1 or worker.owns(name))
    )
    return list(islice(stored, limit))
