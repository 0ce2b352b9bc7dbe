"""The items of a running stream: a table (`--items`) that may change, on top of those of training.

Items of the table that the model does not know get the next ids and are scored by their content. A
store remembers the ids, because states hold them. The file is read again whenever it has changed; a
table that cannot be used is reported, and the one before stays.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.item_table import read_item_table
from rec2pm_jax.data.prepare.filters import merge_items
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.stores.base import Store
from rec2pm_jax.typing import Params

POLL_S = 1.0  # seconds between looks at the file
_ADDED = (
    "added_items"  # metadata of a store: {"known": items of the data, "ids": raw ids after them}
)

_log = logging.getLogger(__name__)


class LiveItems:
    """Makes the recommender anew when the item table has changed.

    Attributes:
      recommender: over the newest table that could be used.
      changes: how many times the table was read after the start.
      failures: how many times it could not be used.
    """

    def __init__(
        self,
        path: str,
        recommender: Recommender,
        store: Store,
        now: Callable[[], float] = time.monotonic,
    ):
        """Read the table.

        Args:
          path: of the table, see `data.item_table`; empty: only what the store remembers is checked.
          recommender: over the items of the dataset.
          store: remembers the ids of further items.
          now: returns seconds.

        Raises:
          UserError: the table cannot be used, the model reads no content, or the store has other ids.
        """
        self._path, self._store, self._now = path, store, now
        self.recommender, self.changes, self.failures = recommender, 0, 0
        known = recommender.catalogue.items.raw_ids[1:]
        self._added = _remembered(store, known)
        if not path:
            if self._added:
                raise UserError(
                    f"The store has events of {len(self._added)} items of an item table, such as "
                    f"{self._added[0]!r}; give the table with --items."
                )
            return
        if recommender.method.spans_devices:
            raise UserError(
                f"--items={path} is not for an item table that is divided over devices: pass "
                "--devices=1."
            )
        if recommender.trained_params is None or recommender.dataset is None:
            raise UserError(
                f"--items={path}: the model knows items by their ids only; train it with "
                "--config.model.item_features, for example 8192."
            )
        self._model: tuple[Params, Dataset] = recommender.trained_params, recommender.dataset
        self._known = recommender.dataset.item_table
        self._seen = self._signature()
        self._looked = now()
        self._read()

    def poll(self) -> Recommender | None:
        """Return a recommender over the new table if the file has changed, else None."""
        if not self._path or self._now() - self._looked < POLL_S:
            return None
        self._looked = self._now()
        signature = self._signature()
        if signature == self._seen:
            return None
        self._seen = signature
        try:
            self._read()
        except UserError as error:
            self.failures += 1
            _log.warning("%s The item table before stays.", error)
            return None
        self.changes += 1
        return self.recommender

    def notes(self) -> list[str]:
        """Return lines for the summary of a stream."""
        if not self._path:
            return []
        text = f"--items: {len(self._added)} items that training did not know"
        text += f", read again {self.changes} times" if self.changes else ""
        text += f", {self.failures} times it could not be used" if self.failures else ""
        return [text]

    def _read(self) -> None:
        """Read the table, note the ids of new items in the store, and make the recommender."""
        params, dataset = self._model
        table = read_item_table(self._path, self.recommender.catalogue.rules.id_type)
        listed = table.with_columns(listed=pl.lit(True))
        before = pl.DataFrame({"item": self._added}, schema={"item": pl.String})
        before = before.join(listed, on="item", how="left", maintain_order="left")
        first = self._known.height + 1
        ids = pl.int_range(first, first + before.height, dtype=pl.Int32, eager=True)
        added = before.drop("listed").rename({"item": "raw_id"})
        added = added.with_columns(id=ids, count=pl.lit(0, pl.Int64))
        known = pl.concat([self._known, added], how="diagonal")
        nothing = pl.DataFrame(schema={"item": pl.String, "count": pl.Int64})
        items = merge_items(known, nothing, listed)
        recommender = make_recommender(self.recommender.method.config, params, dataset, items)
        ids_now = items["raw_id"].to_list()[self._known.height :]
        if ids_now != self._added:
            entry = {"known": self._known.height, "ids": ids_now}
            self._store.put({}, {_ADDED: json.dumps(entry).encode()})
        self._added, self.recommender = ids_now, recommender

    def _signature(self) -> tuple[int, ...] | None:
        try:
            stat = Path(self._path).stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _remembered(store: Store, known: list[str]) -> list[str]:
    """Return the raw ids that the store has numbered after those of the data, without these."""
    entry = store.metadata().get(_ADDED)
    if entry is None:
        return []
    numbered = json.loads(entry)
    first, ids = numbered["known"], numbered["ids"]
    come = known[first:]  # appended to the data since then
    both = min(len(come), len(ids))
    if len(known) < first or come[:both] != ids[:both]:
        raise UserError(
            "The store numbers the items that came after training in another order than the data: "
            "rebuild the store (launch.rebuild_memory), or use the data it was made with."
        )
    return ids[both:]
