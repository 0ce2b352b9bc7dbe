"""What is kept of one user, for people and programs: GET /users/ID."""

from __future__ import annotations

from typing import Any

import numpy as np

from rec2pm_jax.serve.views import without_events
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.outcomes import Recommendation
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import PADDING_ID

EXPECTED = 10  # items that the memory alone expects


def describe_user(engine: Engine, name: str) -> dict[str, Any] | None:
    """Return what is kept of a user, as JSON has it; None for a user without events.

    Call it in the thread that owns the engine.

    Args:
      name: raw id, as `parse_id` returns it.

    Raises:
      RejectedInput: the id is too long for a store.
    """
    model = engine.recommender
    user = engine.get_user(name)
    if not user.events:
        return None
    return {
        "user": name,
        "events": user.events,
        "updates": model.count_updates(user),
        "pending": len(user.pending.ids),
        "last_events": list_pending(model.catalogue, user),
        "memory_expects": [x._asdict() for x in expect_from_memory(model, user)],
    }


def list_pending(catalogue: Catalogue, user: UserState) -> list[dict[str, Any]]:
    """Return the pending events of a user, oldest first: item, title, time and type.

    Time and type are None if the model does not use them, and the item of an unknown one, too.
    """
    ids, times, types = user.pending
    rows = []
    for n, item in enumerate(np.asarray(ids).tolist()):
        known = item != PADDING_ID
        rows.append(
            {
                "item": catalogue.items.raw_ids[item] if known else None,
                "title": catalogue.items.titles[item] if known else None,
                "time": None if times is None else int(times[n]) + user.time_origin,
                "type": None if types is None else catalogue.event_types[int(types[n]) - 1],
            }
        )
    return rows


def expect_from_memory(
    model: Recommender, user: UserState, k: int = EXPECTED, time: int | None = None
) -> list[Recommendation]:
    """Return the best items by the memory alone; none before the first update.

    The model reads one event of no item in place of the pending ones, see `views.without_events`.

    Args:
      k: how many items at most.
      time: of the request, seconds since 1970, or None.
    """
    if not model.count_updates(user) or not len(user.pending.ids):
        return []
    k = min(k, model.catalogue.num_items)
    return model.recommend(without_events(user), k, time=time)


def warm_up_users(model: Recommender) -> None:
    """Compile what `describe_user` needs."""
    user = model.new_user()
    blank = model.catalogue.stack_codes([(PADDING_ID, 0, 1)])
    many = model.method.config.data.segment * 2 + model.method.config.data.recent
    expect_from_memory(model, user._replace(pending=blank, events=many))
