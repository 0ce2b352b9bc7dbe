"""A dataset in memory and a method with exact arithmetic, to check evaluation to the last rank."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods.exact_memory import empty_exact
from rec2pm_jax.methods.segments import plan_last, plan_memory
from rec2pm_jax.typing import Readout, State


class Sequence(NamedTuple):
    """One user, as `Dataset.sequence` returns it."""

    user: str
    ids: np.ndarray
    times: np.ndarray | None
    types: np.ndarray | None


class FakeDataset:
    """Random sequences of the given lengths; event times rise by 1 to 9 seconds."""

    content_hash = "fake"
    info = {"source": "fake", "item_level": "item"}

    def __init__(self, lengths, num_items=12, times=True, seed=0):
        rng = np.random.default_rng(seed)
        self.lengths = np.asarray(lengths, np.int32)
        self.num_users, self.num_items = len(lengths), num_items
        self._ids = [rng.integers(1, num_items + 1, n).astype(np.int32) for n in lengths]
        self._times = [rng.integers(1, 10, n).cumsum().astype(np.int32) for n in lengths]
        self._has_times = times

    def sequence(self, index):
        times = self._times[index] if self._has_times else None
        return Sequence(f"user{index}", self._ids[index], times, None)

    def sequences(self, indices):
        return [self.sequence(int(index)) for index in indices]


@dataclasses.dataclass(frozen=True)  # equal methods share compiled functions
class FakeMethod:
    """Memory and vectors are counts of items, in dyadic fractions that float32 holds exactly.

    update: M <- M / 2 + counts of the segment. read: counts of the window so far + M / 4, and 1/8
    at an item that the query time selects. One-time compression adds up all counts. Update and
    compression also count, once, an item that the time of the next event selects.
    """

    config: Config
    num_items: int

    def __post_init__(self):
        model = dataclasses.replace(self.config.model, use_times=True)  # where there are any
        object.__setattr__(self, "config", dataclasses.replace(self.config, model=model))

    can_compress = True

    @property
    def stores_memory(self):
        return self.config.method.name == "rec2pm"

    @property
    def memory(self):
        """The sizes of a state."""
        rows = int(self.stores_memory)
        return SimpleNamespace(capacity=rows, slots=1, slot_dim=self.num_items + 1, entries=0)

    @property
    def memory_kind(self):
        return self.config.method.memory if self.stores_memory else "none"

    @property
    def read_length(self):
        return self.config.data.read_length

    def init_state(self, params, batch_size):
        shape = (batch_size, self.memory.capacity, self.num_items + 1)
        none = jnp.zeros(batch_size, jnp.int32)
        return State(jnp.zeros(shape), none, none, empty_exact(batch_size, 0))

    def _one_hot(self, events, valid):
        return jax.nn.one_hot(events.ids, self.num_items + 1) * valid[..., None].astype(jnp.float32)

    def _counts(self, events, valid, next_time):
        counts = self._one_hot(events, valid).sum(axis=1)[:, None]
        if next_time is None:
            return counts
        return counts + jax.nn.one_hot(next_time % self.num_items + 1, self.num_items + 1)[:, None]

    def update(self, params, state, events, valid, next_time=None):
        assert events.ids.shape[1] == self.config.data.segment
        counts = self._counts(events, valid, next_time)
        some = valid.any(axis=1)
        memory = jnp.where(some[:, None, None], state.memory / 2 + counts, state.memory)
        once = some.astype(jnp.int32)
        return State(memory, state.groups + once, state.segments + once, state.exact)

    def compress(self, params, events, valid, next_time=None):
        counts = self._counts(events, valid, next_time)
        some = valid.any(axis=1).astype(jnp.int32)
        return State(counts, some, some, empty_exact(len(some), 0))

    def read_all(self, params, state, events, valid, request_time=None):
        vectors = self._one_hot(events, valid).cumsum(axis=1)
        vectors = vectors + params["scale"] * state.memory.sum(axis=1)[:, None] / 4
        if events.times is None:
            return Readout(vectors, None)
        following = jnp.roll(events.times, -1, axis=1)
        last = jnp.arange(valid.shape[1]) == valid.sum(axis=1)[:, None] - 1
        asked = jnp.where(last, request_time[:, None], following)
        selected = jax.nn.one_hot(asked % self.num_items + 1, self.num_items + 1)
        return Readout(vectors + selected / 8, None)

    def score(self, params, readout):
        return readout.vectors.at[..., 0].set(-jnp.inf)

    def plan(self, n, max_segments=0):
        if self.stores_memory:
            return plan_memory(n, self.config.data, max_segments)
        return plan_last(n, self.read_length)


PARAMS = {"scale": jnp.float32(1)}


def slow_rank(scores, target):
    """Rank by sorting: the target comes after every item that scores the same."""
    order = sorted(range(1, len(scores)), key=lambda item: (-scores[item], item == target))
    return order.index(target) + 1
