"""Evaluate the heuristics with the ranks, protocols and records of every other method."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.splits import SplitRule, bound_rule, training_ids
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluation.heuristic_ranking import rank_by, recommend_by
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.measures import measure
from rec2pm_jax.evaluation.metrics import summarize
from rec2pm_jax.evaluation.record import Evaluation, dataset_name
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import select_targets
from rec2pm_jax.methods.heuristics import (
    Transitions,
    counts_and_transitions,
    mix,
    own_and_following,
    personal_frequency,
    training_popularity,
    training_transitions,
)

HEURISTICS = ("popularity", "personal_frequency", "counts_and_transitions")
# The mixes that validation chooses from. Where nothing repeats (films), transitions are all there is.
POPULARITY_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
TRANSITION_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
_CHOOSING_USERS = 1000  # whose validation targets choose the mix


@dataclasses.dataclass(frozen=True)
class Heuristic:
    """A ranking without trained parameters, see `methods.heuristics`.

    Attributes:
      name: one of `HEURISTICS`.
      window: number of newest events that personal frequency counts; None for all.
      half_life: decay of personal frequency, in events; None for no decay.
      popularity_weight: of counts and transitions; None: chosen on validation.
      transition_weight: of counts and transitions; None: chosen on validation.

    Raises:
      UserError: an unknown name, a negative setting, or a setting of another heuristic.

    >>> Heuristic("personal_frequency", window=50).window
    50
    """

    name: str
    window: int | None = None
    half_life: float | None = None
    popularity_weight: float | None = None
    transition_weight: float | None = None

    def __post_init__(self) -> None:
        if self.name not in HEURISTICS:
            raise UserError(
                f"heuristic={self.name!r} is unknown; choose one of {', '.join(HEURISTICS)}."
                f"{nearest(self.name, HEURISTICS)}"
            )
        if (self.window or 0) < 0 or (self.half_life or 0) < 0:
            raise UserError(
                f"window={self.window} and half_life={self.half_life} must not be negative."
            )
        if self.name != "personal_frequency" and (self.window or self.half_life):
            raise UserError(
                f"window and half_life belong to personal_frequency; {self.name} has none."
            )
        weights = (self.popularity_weight, self.transition_weight)
        if self.name != "counts_and_transitions" and weights != (None, None):
            raise UserError(f"Weights belong to counts_and_transitions; {self.name} has none.")
        if (weights[0] is None) != (weights[1] is None) or min(w or 0 for w in weights) < 0:
            raise UserError(
                f"popularity_weight={weights[0]} and transition_weight={weights[1]}: give both, from "
                "0 on, or none of them."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that the heuristic may read, for records."""
        names = ("window", "half_life")
        if self.name == "counts_and_transitions":
            names = ("popularity_weight", "transition_weight")
        return {name: getattr(self, name) for name in names}

    def scores(self, history: np.ndarray, counts: TrainingCounts) -> np.ndarray:
        """Return the score of each item for one user: float64 [V].

        Args:
          history: int [n], item ids of the user's events in order.
          counts: of the training events; transitions are read by counts and transitions only.
        """
        if self.name == "popularity":
            return counts.popularity
        if self.name == "personal_frequency":
            return personal_frequency(
                history, counts.popularity, window=self.window or 0, half_life=self.half_life or 0.0
            )
        return counts_and_transitions(
            history,
            counts.popularity,
            counts.transitions,
            popularity_weight=self.popularity_weight or 0.0,
            transition_weight=self.transition_weight or 0.0,
        )


class TrainingCounts(NamedTuple):
    """What heuristics know of the training events of all users.

    Attributes:
      popularity: float64 [V], see `training_popularity`.
      transitions: see `training_transitions`.
    """

    popularity: np.ndarray
    transitions: Transitions


def evaluate_heuristic(
    heuristic: Heuristic,
    dataset: EvaluationData,
    spec: EvalSpec,
    data: DataConfig | None = None,
) -> Evaluation:
    """Rank every target by a heuristic that is given the user's whole history before it.

    Popularity and transitions count the training events of all users, whichever are evaluated. If the
    request time is known, the items of the current basket are left out: the user's events before the
    target that have its time.

    Args:
      heuristic: which heuristic, and its settings. Weights that are None are chosen on validation.
      dataset: a prepared dataset, or a view of some of its users.
      spec: split, protocol, users, and whether the request time is known; what concerns memory is
        ignored. Heuristics count events of all types, whichever types are targets.
      data: the settings of the protocol, and the protocol if `spec` names none; None for the
        defaults.

    Returns:
      The ranks and metrics.

    Raises:
      UserError: the protocol leaves out what a model has read, no user has targets, or the request
        time is known and the dataset has no times.
    """
    began = time.perf_counter()
    data = data or DataConfig()
    protocol = spec.protocol or data.protocol
    rule = bound_rule(data, dataset, protocol, spec.target_types)
    if rule.mask_seen:
        raise UserError(
            f"protocol={protocol} leaves out what a model reads; heuristics read nothing. Use "
            "leave_one_out or last_10."
        )
    selection = select_targets(dataset, rule, spec.split, spec.max_users, spec.seed)
    histories, targets = selection.histories, selection.targets
    known = spec.knows_request_time(histories, default=False)
    if spec.corrupt is not None:
        histories = spec.corrupt(histories, targets)
    counts = _count(heuristic, dataset, rule)
    if heuristic.name == "counts_and_transitions" and heuristic.popularity_weight is None:
        heuristic = _choose_weights(dataset, rule, spec, counts)
    chosen = heuristic

    def score(prefixes: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        yield np.stack([chosen.scores(ids, counts) for ids in prefixes])

    (ranks,) = rank_by(score, histories, targets, dataset.num_items, known)
    lists = None
    if spec.measures.lists:
        k = max(spec.measures.list_cutoffs)
        lists = recommend_by(score, histories, targets, dataset.num_items, known, k)
    return Evaluation(
        method=heuristic.name,
        memory="none",
        backbone=None,
        dataset=dataset_name(dataset.info),
        data_hash=dataset.content_hash,
        split=spec.split,
        protocol=protocol,
        target_types=spec.target_types,
        swapped_ranks={},
        skipped_users=selection.skipped,
        **measure(dataset, rule, selection, ranks, lists, spec.measures),
        wall_s=time.perf_counter() - began,
        request_time_known=known,
        settings=heuristic.settings,
    )


def dataset_popularity(dataset: EvaluationData, rule: SplitRule) -> np.ndarray:
    """Return `training_popularity` of all users' training events under a split rule: float64 [V]."""
    return training_popularity(training_ids(dataset, rule), dataset.num_items)


def _count(heuristic: Heuristic, dataset: EvaluationData, rule: SplitRule) -> TrainingCounts:
    read = heuristic.name == "counts_and_transitions"
    ids = training_ids(dataset, rule) if read else ()
    transitions = training_transitions(ids, dataset.num_items)
    return TrainingCounts(dataset_popularity(dataset, rule), transitions)


def _choose_weights(
    dataset: EvaluationData, rule: SplitRule, spec: EvalSpec, counts: TrainingCounts
) -> Heuristic:
    """Return counts and transitions with the weights that rank validation targets best."""
    weights = list(itertools.product(POPULARITY_WEIGHTS, TRANSITION_WEIGHTS))

    def score(known: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        parts = (own_and_following(ids, *counts) for ids in known)
        own, following = (np.stack(part) for part in zip(*parts, strict=True))
        for pair in weights:
            yield mix(own, counts.popularity, following, *pair)

    _, _, histories, targets = select_targets(dataset, rule, "validation", _CHOOSING_USERS)
    ranks = rank_by(score, histories, targets, dataset.num_items, bool(spec.request_time_known))
    ndcg = [summarize(r, targets.user, sets=rule.predicts_sets)["ndcg@10"] for r in ranks]
    a, b = weights[int(np.argmax(ndcg))]
    return Heuristic("counts_and_transitions", popularity_weight=a, transition_weight=b)
