"""Whom to recommend to, and their memories: from a store, or made from prepared histories."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import polars as pl

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.os_errors import check_path
from rec2pm_jax.stream.compute import batches
from rec2pm_jax.stream.compute.histories import compute_users
from rec2pm_jax.stream.compute.updater import MemoryUpdater
from rec2pm_jax.stream.lines.events import RejectedInput, parse_id
from rec2pm_jax.stream.rebuild import is_rebuilt
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import MAINTENANCE, Store, check_settings, open_store
from rec2pm_jax.stream.stores.reading import read_states
from rec2pm_jax.stream.users.mutable_user import MutableUser


class UserSource(Protocol):
    """Users by name.

    Attributes:
      names: of all users, in the order of the output.
      recommender: with the origin of time of the users.
      updater: turns users into arrays.
    """

    names: list[str]
    recommender: Recommender
    updater: MemoryUpdater

    def take(self, names: Sequence[str]) -> list[MutableUser]:
        """Return users with all updates; one without events for a name that is unknown."""
        ...


class DatasetUsers:
    """The users of a prepared dataset, with the memories of their events there."""

    def __init__(self, recommender: Recommender, *, one_pass: bool, keeps_seen: bool):
        """Prepare for the recommender's dataset.

        Args:
          one_pass: make a memory in one pass over the history, and not by updates.
          keeps_seen: whether it is asked what users have seen.

        Raises:
          UserError: the method has no one-pass compression.
        """
        assert recommender.dataset is not None, "no dataset"
        if one_pass and not recommender.method.can_compress:
            raise UserError(
                f"config.method.name={recommender.method.config.method.name} has no one-pass "
                "compression: leave out --memories=one_pass."
            )
        self.recommender, self._dataset, self._one_pass = recommender, recommender.dataset, one_pass
        self.updater = MemoryUpdater(recommender, "float32", "events" if keeps_seen else "none")
        self.names = [self._dataset.user(i) for i in range(self._dataset.num_users)]

    def take(self, names: Sequence[str]) -> list[MutableUser]:
        users = [self.updater.record_format.new_user() for _ in names]
        indices = [self._dataset.user_index(name) for name in names]
        known = [row for row, index in enumerate(indices) if index is not None]
        known.sort(key=lambda row: self._dataset.lengths[indices[row]])  # equal lengths go together
        for begin in range(0, len(known), batches.MAX_BATCH):
            rows = known[begin : begin + batches.MAX_BATCH]
            sequences = [self._dataset.sequence(indices[row]) for row in rows]  # type: ignore[arg-type]
            made = compute_users(
                self.recommender,
                self.updater.record_format,
                sequences,
                self._dataset.time_origin,
                one_pass=self._one_pass,
            )
            for row, user in zip(rows, made, strict=True):
                users[row] = user
        return users


class StoreUsers:
    """The users of a store of `launch.stream` or `launch.rebuild_memory`, with their memories."""

    def __init__(self, recommender: Recommender, store: Store, now: float):
        """Read the names of all users.

        Args:
          now: seconds since 1970, for users that have expired.

        Raises:
          UserError: the store is empty, incomplete, or of another model.
        """
        is_rebuilt(store)
        identity = recommender.identity
        wanted = {"model": identity.model, "config_hash": identity.config_hash}
        settings, origin = check_settings(store, wanted)
        self.recommender = recommender.with_time_origin(origin)
        self.updater = MemoryUpdater(
            self.recommender, str(settings["memory"]), str(settings.get("seen", "none"))
        )
        self._store, self._now = store, now
        self.names = sorted(name for name, _ in store.items())

    def take(self, names: Sequence[str]) -> list[MutableUser]:
        users = []
        record_format = self.updater.record_format
        for name, record in zip(names, self._store.get(names), strict=True):
            user = None if record is None else record_format.decode(name, record, self._now)
            users.append(record_format.new_user() if user is None else user)
        read_states(self._store, record_format, dict(zip(names, users, strict=True)))
        self.updater.finish_updates(users)
        return users


@contextlib.contextmanager
def open_users(
    recommender: Recommender, store: str, *, one_pass: bool, keeps_seen: bool, now: float
) -> Iterator[UserSource]:
    """Open the users to recommend to.

    Args:
      store: its address; "" for the users of the recommender's dataset.
      one_pass, keeps_seen: see `DatasetUsers`.
      now: see `StoreUsers`.

    Raises:
      UserError: there is no such store, or it cannot serve this model.
    """
    if not store:
        yield DatasetUsers(recommender, one_pass=one_pass, keeps_seen=keeps_seen)
        return
    if "://" not in store and not os.path.isfile(os.path.join(store, "data.mdb")):
        raise UserError(f"--store={store}: there is no store in this directory.")
    with contextlib.closing(open_store(store, MAINTENANCE)) as opened:
        yield StoreUsers(recommender, opened, now)


@dataclasses.dataclass(frozen=True)
class UserList:
    """Names of users that a file lists.

    Attributes:
      names: distinct, in the order of the file.
      repeated: how often a name came again.
    """

    names: list[str]
    repeated: int


def read_user_list(path: str, rules: ValueRules) -> UserList:
    """Read a file of user ids: one on each line, or the column `user` of a Parquet file.

    Args:
      path: the file.
      rules: how the ids of the training data were read.

    Raises:
      UserError: the file cannot be read, has no ids, or one of them is none; the message names it.
    """
    check_path(path)
    rows: Sequence[object]
    try:
        if path.endswith(".parquet"):
            frame = pl.read_parquet(path)
            if "user" not in frame.columns:
                raise UserError(f"--users={path} has no column user.")
            rows = frame["user"].to_list()
        else:
            rows = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"--users={path} cannot be read: {reason}.") from error
    names = []
    for number, row in enumerate(rows, 1):
        value = row.strip() if isinstance(row, str) else row
        if value == "":
            continue
        try:
            names.append(parse_id(value, "user", rules))
        except RejectedInput as error:
            raise UserError(f"--users={path}, row {number}: {error}.") from None
    if not names:
        raise UserError(f"--users={path} lists no users.")
    distinct = list(dict.fromkeys(names))
    return UserList(distinct, len(names) - len(distinct))
