"""Evaluates the heuristics with the ranks, protocols and records of every other method."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.splits import bound_rule
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluate.metrics import check_ranks, summarize, target_ranks
from rec2pm_jax.evaluate.record import Evaluation, dataset_name
from rec2pm_jax.evaluate.targets import (
    Histories,
    Targets,
    load_histories,
    make_targets,
    select_users,
)
from rec2pm_jax.methods.heuristics import personal_frequency, training_popularity

HEURISTICS = ("popularity", "personal_frequency")
_CELLS = 1 << 20  # scores ranked at a time


def dataset_popularity(dataset, rule) -> np.ndarray:
    """`training_popularity` of all users' training events under a split rule: float64 [V]."""
    everyone = (dataset.sequence(i).ids for i in range(dataset.num_users))
    training = (
        ids[:end] for ids, end in zip(everyone, rule.train_ends(dataset.lengths), strict=True)
    )
    return training_popularity(training, dataset.num_items)


def evaluate_heuristic(
    name: str,
    dataset,
    *,
    split: str,
    protocol: str = "",
    data: DataConfig | None = None,
    window: int = 0,
    half_life: float = 0.0,
    max_users: int = 0,
    seed: int = 0,
    corrupt: Callable[[Histories, Targets], Histories] | None = None,
) -> Evaluation:
    """Ranks every target of `split` by a heuristic fed with its whole own prefix.

    Popularity counts the training events of all users, whichever are evaluated.

    Args:
      name: popularity | personal_frequency.
      window: newest events personal frequency counts; 0 for the whole history.
      half_life: its decay in events; 0 for none.
      data: the protocol's settings, and the protocol where `protocol` is empty.
      split, protocol, max_users, seed, corrupt: as in `evaluator.evaluate`.

    Raises:
      UserError: an unknown name, a protocol that masks what a model has read, a negative setting,
        one that popularity does not have, or nobody has targets under the protocol.
    """
    if name not in HEURISTICS:
        raise UserError(
            f"heuristic={name!r} is unknown; choose one of {', '.join(HEURISTICS)}."
            f"{nearest(name, HEURISTICS)}"
        )
    if window < 0 or half_life < 0:
        raise UserError(f"window={window} and half_life={half_life} must not be negative.")
    if name == "popularity" and (window or half_life):
        raise UserError("window and half_life belong to personal_frequency; popularity has none.")

    began = time.perf_counter()
    data = data or DataConfig()
    protocol = protocol or data.protocol
    rule = bound_rule(data, dataset, protocol)
    if rule.mask_seen:
        raise UserError(
            f"protocol={protocol} leaves out what a model reads; heuristics read nothing. Use "
            "leave_one_out or last_10."
        )
    users, skipped = select_users(dataset.lengths, rule, split, max_users, seed)
    histories = load_histories(dataset, users)
    targets = make_targets(histories, rule, split)
    if corrupt is not None:
        histories = corrupt(histories, targets)
    popularity = dataset_popularity(dataset, rule)

    def scores_of(user: int, position: int) -> np.ndarray:
        if name == "popularity":
            return popularity
        begin = histories.offsets[user]
        history = histories.ids[begin : begin + position]
        return personal_frequency(history, popularity, window=window, half_life=half_life)

    item = histories.ids[histories.offsets[targets.user] + targets.position]
    ranks = np.zeros(len(item), np.int64)
    chunk = max(1, _CELLS // (dataset.num_items + 1))
    for begin in range(0, len(item), chunk):
        part = slice(begin, begin + chunk)
        pairs = zip(targets.user[part], targets.position[part], strict=True)
        ranks[part] = target_ranks(np.stack([scores_of(*pair) for pair in pairs]), item[part])
    check_ranks(ranks)
    return Evaluation(
        method=name,
        memory="none",
        backbone=None,
        dataset=dataset_name(dataset.info),
        data_hash=dataset.content_hash,
        split=split,
        protocol=protocol,
        user=users[targets.user],
        position=targets.position,
        rank=ranks,
        swapped_rank=None,
        metrics=summarize(ranks, targets.user),
        skipped_users=skipped,
        wall_s=time.perf_counter() - began,
    )
