"""All users that a model can answer, in groups: those of its dataset, or those of a store.

Groups are made one after the other, so that any number of users fits in memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.compute.histories import compute_users
from rec2pm_jax.stream.compute.updater import MemoryUpdater
from rec2pm_jax.stream.lines.events import RawIds, parse_ids
from rec2pm_jax.stream.rebuild import is_rebuilt
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store, claim_store, claim_time_origin, read_settings
from rec2pm_jax.stream.stores.reading import read_states
from rec2pm_jax.stream.users.user_state import UserState

GROUP = 4 * batches.MAX_BATCH

UserGroup = list[tuple[str, UserState]]


class AllUsers(NamedTuple):
    """Users with all their updates.

    Attributes:
      recommender: of these users; its origin of time is theirs.
      memory: format that their memories were stored in, one of `codec.FORMATS`.
      total: how many users there are; None where they are not counted.
      groups: yields (raw id, state) of up to `GROUP` users at a time.
    """

    recommender: Recommender
    memory: str
    total: int | None
    groups: Iterator[UserGroup]


def users_of_dataset(
    recommender: Recommender, memory: str = "float32", names: RawIds | None = None
) -> AllUsers:
    """Return the users of the recommender's dataset, after all events that they have there.

    Users come in the order of their numbers of events, as histories of one length are fast.

    Args:
      memory: format that memories are rounded to after every update, one of `codec.FORMATS`.
      names: raw ids of the wanted users; None for all of them.

    Raises:
      UserError: the recommender has no dataset, or the dataset has no such user.

    Example:
      >>> import rec2pm_jax
      >>> model = rec2pm_jax.load("runs/demo/rec2pm")
      >>> users = users_of_dataset(model, names=["1"])
      >>> [(name, user)] = next(users.groups)
      >>> name, user.events == model.user("1").events
      ('1', True)
    """
    dataset = recommender.dataset
    if dataset is None:
        raise UserError("This model has no dataset: load it with the one it was trained on.")
    updater = MemoryUpdater(recommender, memory)
    order = np.argsort(dataset.lengths, kind="stable")
    if names is not None:
        wanted = [
            _index_of(dataset, name)
            for name in parse_ids(names, "names", recommender.catalogue.rules)
        ]
        order = order[np.isin(order, wanted)]

    def groups() -> Iterator[UserGroup]:
        for begin in range(0, len(order), GROUP):
            sequences = [dataset.sequence(int(row)) for row in order[begin : begin + GROUP]]
            users = compute_users(
                recommender, updater.record_format, sequences, dataset.time_origin
            )
            names = (sequence.user for sequence in sequences)
            yield list(zip(names, updater.freeze(users), strict=True))

    return AllUsers(recommender, memory, len(order), groups())


def _index_of(dataset: Dataset, name: str) -> int:
    index = dataset.user_index(name)
    if index is None:
        raise UserError(f"User {name!r} is not in {dataset.path}.")
    return index


def users_of_store(recommender: Recommender, store: Store, now: float | None = None) -> AllUsers:
    """Return the users of a store, which is only read; expired ones are users without events.

    Args:
      recommender: the model that made the store.
      store: filled by a stream or a rebuild.
      now: seconds since 1970; None for the present.

    Raises:
      UserError: the store is empty, incomplete or of another model. Damage of a record is found when
        its group is made.
    """
    now = time.time() if now is None else now
    is_rebuilt(store)
    settings, identity = read_settings(store), recommender.identity
    memory = str(settings["memory"])
    claim_store(store, {"model": identity.model, "config_hash": identity.config_hash})
    origin = claim_time_origin(store, recommender.catalogue.time_origin)
    recommender = recommender.with_time_origin(origin)
    updater = MemoryUpdater(recommender, memory)

    form = updater.record_format

    def groups() -> Iterator[UserGroup]:
        records = store.items()
        while group := list(islice(records, GROUP)):
            users = {name: form.decode(name, row, now) or form.new_user() for name, row in group}
            read_states(store, form, users)
            updater.finish(list(users.values()))
            yield list(zip(users, updater.freeze(list(users.values())), strict=True))

    return AllUsers(recommender, memory, None, groups())
