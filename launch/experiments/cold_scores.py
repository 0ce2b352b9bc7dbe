"""Metrics of known and cold items: of trained models, and of counts that know categories."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.data.dataset import Dataset
from rec2pm_jax.data.splits import bound_rule, count_training_events
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.metrics import summarize, target_ranks
from rec2pm_jax.evaluation.ranking import read_targets
from rec2pm_jax.evaluation.targets import Targets, plan_rows, select_targets, target_items
from rec2pm_jax.methods.method import Method
from rec2pm_jax.typing import Array, Params, Readout

_BATCH = 256  # targets that are ranked at a time
_TIE_NOISE = 1e-9  # ties of counts are broken by chance


class Ranks(NamedTuple):
    """Ranks of test targets.

    Attributes:
      user: int [T], the user of each target.
      cold: bool [T], whether its item has no training event.
      full: int [T], rank in the full catalogue.
      among_cold: int [T], rank among items without training events; of cold targets only.
    """

    user: np.ndarray
    cold: np.ndarray
    full: np.ndarray
    among_cold: np.ndarray

    def summarize(self) -> dict[str, float]:
        """Return NDCG@10, as a fraction, of known items, and of cold items in both rankings."""

        def mean(ranks: np.ndarray, part: np.ndarray) -> float:
            return summarize(ranks[part], self.user[part])["ndcg@10"]

        return {
            "known": mean(self.full, ~self.cold),
            "cold_full": mean(self.full, self.cold),
            "cold_among_cold": mean(self.among_cold, self.cold),
            "cold_median_rank": float(np.median(self.full[self.cold])),
        }


def rank_model(method: Method, params: Params, dataset: Dataset) -> Ranks:
    """Rank the test targets by a model.

    Args:
      method: the method.
      params: that serve, see `training.item_content.serving_params`.
      dataset: of `cold_data.prepare_cold`.

    Raises:
      UserError: no user has test targets.
    """
    trained, histories, targets = _select(method, dataset)
    rows = plan_rows(targets, method, None)
    states = compute_memories(method, params, histories, rows, method.memory_kind, 128)
    readout = read_targets(
        method,
        params,
        histories,
        rows,
        states,
        batch_size=128,
        request_time_known=method.config.reads_times,
    )
    items, cold = target_items(histories, targets), trained == 0
    ranks = np.zeros((2, len(items)), np.int64)
    for first in range(0, len(items), _BATCH):
        part = np.arange(first, first + _BATCH) % len(items)  # the last batch is filled up
        some = jax.tree.map(lambda field, part=part: field[part], readout)
        ranks[:, part] = _rank(method, params, some, items[part], cold)
    return Ranks(targets.user, cold[items], *ranks)


def rank_counts(method: Method, dataset: Dataset) -> dict[str, Ranks]:
    """Rank the test targets by counts of training events that know the category of cold items.

    Args:
      method: names the protocol.
      dataset: as for `rank_model`.

    Returns:
      By name: popularity, where a cold item counts as much as the mean known item of its category; and
      the user's events in the item's category, per item of it.
    """
    trained, histories, targets = _select(method, dataset)
    cold = trained == 0
    cold[0] = False
    names = np.array([str(name) for name in dataset.items.categories])
    _, category = np.unique(names, return_inverse=True)
    known = (trained > 0).astype(float)
    events = np.bincount(category, weights=trained)
    items = np.maximum(np.bincount(category, weights=known), 1)
    popularity = np.where(cold, (events / items)[category], trained).astype(float)
    popularity += _TIE_NOISE * np.random.default_rng(0).random(len(popularity))
    found = {name: np.zeros((2, len(targets.user)), np.int64) for name in ("popularity", "own")}
    wanted = target_items(histories, targets)
    for row, (user, position) in enumerate(zip(targets.user, targets.position, strict=True)):
        start = histories.offsets[user]
        own = np.bincount(category[histories.ids[start : start + position]], minlength=len(items))
        scores = (own / items)[category] + _TIE_NOISE * popularity / popularity.max()
        for name, values in (("popularity", popularity), ("own", scores)):
            above = values[1:] >= values[wanted[row]]
            found[name][:, row] = above.sum(), (above & cold[1:]).sum()
    return {
        "popularity, of a cold item that of its category": Ranks(
            targets.user, cold[wanted], *found["popularity"]
        ),
        "the user's own categories, events per item": Ranks(
            targets.user, cold[wanted], *found["own"]
        ),
    }


def _select(method: Method, dataset: Dataset) -> tuple[np.ndarray, Histories, Targets]:
    """Return the training events of each item [V], and the test targets with their histories."""
    rule = bound_rule(method.config.data, dataset)
    _, _, histories, targets = select_targets(dataset, rule, "test")
    return count_training_events(dataset, rule), histories, targets


@functools.partial(jax.jit, static_argnums=0)
def _rank(
    method: Method, params: Params, readout: Readout, items: Array, cold: Array
) -> tuple[Array, Array]:
    """Return the rank of each item int32 [B] in the full catalogue and among cold items."""
    scores = method.score(params, readout)
    others = jnp.broadcast_to(~cold, scores.shape)
    return target_ranks(scores, items), target_ranks(scores, items, others)
