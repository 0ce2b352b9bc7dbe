"""Where the catalogue is: whole on one device, or its rows spread over the devices of a job.

Evaluation asks a catalogue for a `Reader` of some histories, and for the ranks and the best items of
what was read. Everything outside of this module counts items by their ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.evaluation import sharded_catalogue
from rec2pm_jax.evaluation.batching import round_up_count
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.metrics import check_ranks
from rec2pm_jax.evaluation.ranking import rank_targets, read_targets, recommend, seen_items
from rec2pm_jax.evaluation.targets import Rows, Targets, target_items
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.sharded_table import is_spread
from rec2pm_jax.typing import PADDING_ID, Array, Params, Readout, State


class Reader(NamedTuple):
    """Reads histories on one device.

    Attributes:
      method, params: over the items of the histories, or over all items.
      histories: with items in the numbers of `method`.
      items: int32 [n], ascending, the id of each number; None where numbers are ids.
    """

    method: Method
    params: Params
    histories: Histories
    items: np.ndarray | None = None

    def compute_memories(
        self, rows: Rows, memory: str, batch_size: int, memory_format: str = "float32"
    ) -> State:
        """Return the memory states of rows, see `memory_states.compute_memories`."""
        states = compute_memories(
            self.method, self.params, self.histories, rows, memory, batch_size, memory_format
        )
        if self.items is None:
            return states
        return _with_items(states, self.items[states.exact.items])

    def read(self, rows: Rows, states: State, **options: Any) -> Readout:
        """Return what predicts each target, see `ranking.read_targets`.

        Args:
          rows: the windows to read.
          states: with items that the reader knows.
          options: keyword arguments of `read_targets`.
        """
        if self.items is None:
            return read_targets(self.method, self.params, self.histories, rows, states, **options)
        numbers = np.searchsorted(self.items, states.exact.items).astype(np.int32)
        states = _with_items(states, numbers)
        readout = read_targets(self.method, self.params, self.histories, rows, states, **options)
        own = readout.own
        return readout._replace(own=own and own._replace(ids=self.items[own.ids]))


class Catalogue(Protocol):
    """The items of a method and its parameters."""

    def reader(self, histories: Histories, more: np.ndarray | None = None) -> Reader:
        """Return what reads histories.

        Args:
          histories: of this process.
          more: int32, ids of further items that states may hold, in any shape.
        """
        ...

    def rank(
        self, histories: Histories, targets: Targets, readout: Readout, mask_seen: bool
    ) -> np.ndarray:
        """Rank targets among all items, see `ranking.rank_targets`."""
        ...

    def recommend(
        self, histories: Histories, targets: Targets, readout: Readout, k: int, mask_seen: bool
    ) -> np.ndarray:
        """Return the best items, see `ranking.recommend`."""
        ...


def catalogue_of(method: Method, params: Params) -> Catalogue:
    """Return where the catalogue is: the item table in `params` tells."""
    if method.config.model.table == "sharded":
        table = method.network.table(params)
        if is_spread(table):
            return ShardedCatalogue(method, params, table)
    return WholeCatalogue(method, params)


class WholeCatalogue(NamedTuple):
    """A catalogue that lies on one device of every process.

    Attributes:
      method, params: over all items.
    """

    method: Method
    params: Params

    def reader(self, histories: Histories, more: np.ndarray | None = None) -> Reader:
        return Reader(self.method, self.params, histories)

    def rank(
        self, histories: Histories, targets: Targets, readout: Readout, mask_seen: bool
    ) -> np.ndarray:
        return rank_targets(
            self.method, self.params, histories, targets, readout, mask_seen=mask_seen
        )

    def recommend(
        self, histories: Histories, targets: Targets, readout: Readout, k: int, mask_seen: bool
    ) -> np.ndarray:
        return recommend(
            self.method, self.params, histories, targets, readout, k, mask_seen=mask_seen
        )


class ShardedCatalogue(NamedTuple):
    """A catalogue whose rows are spread over devices; every process of the job makes the same calls.

    A reader works on one device of its process, over the items of its histories.
    Their rows are fetched. All devices rank.

    Attributes:
      method: over all items.
      params: the item table spread over the devices, the rest on one device of this process.
      table: the item table.
    """

    method: Method
    params: Params
    table: Array

    def reader(self, histories: Histories, more: np.ndarray | None = None) -> Reader:
        ids = histories.ids if more is None else np.append(histories.ids, more)
        # Number 0 is padding. Numbers are in the order of ids, which decides ties in exact memories.
        items = np.union1d(ids, [PADDING_ID]).astype(np.int32)
        count = round_up_count(len(items))  # so that few programs are compiled
        wanted = np.append(items, np.zeros(count - len(items), np.int32))
        rows = sharded_catalogue.fetch_rows(self.table, wanted, self.method.config.model.dim)
        return Reader(
            make_method(self.method.config, count - 1),
            self.method.network.with_table(self.params, jnp.asarray(rows)),
            histories._replace(ids=np.searchsorted(items, histories.ids).astype(np.int32)),
            items,
        )

    def rank(
        self, histories: Histories, targets: Targets, readout: Readout, mask_seen: bool
    ) -> np.ndarray:
        found = sharded_catalogue.ranks(
            self.method.config.loss,
            self.table,
            self.method.num_items,
            self._widen(readout),
            target_items(histories, targets),
            self._seen(histories, targets) if mask_seen else None,
        )
        return check_ranks(found)

    def recommend(
        self, histories: Histories, targets: Targets, readout: Readout, k: int, mask_seen: bool
    ) -> np.ndarray:
        places = min(k, self.method.num_items)
        scores, ids = sharded_catalogue.best(
            self.method.config.loss,
            self.table,
            self.method.num_items,
            self._widen(readout),
            places,
            self._seen(histories, targets) if mask_seen else None,
        )
        lists = np.where(scores > -np.inf, ids, PADDING_ID)
        return np.pad(lists, ((0, 0), (0, k - places)))

    def _seen(self, histories: Histories, targets: Targets) -> sharded_catalogue.Seen:
        return lambda batch: seen_items(self.method, histories, targets, batch)

    def _widen(self, readout: Readout) -> Readout:
        """Pad own items to the most that a read has: all processes need equally many."""
        if readout.own is None:
            return readout
        memory = self.method.memory
        room = memory.entries + memory.read_length - readout.own.ids.shape[1]
        own: Any = jax.tree.map(lambda a: np.pad(a, ((0, 0), (0, room))), readout.own)
        return readout._replace(own=own)


def _with_items(states: State, items: np.ndarray) -> State:
    exact: Any = states.exact._replace(items=items)  # type: ignore[arg-type]
    return states._replace(exact=exact)
