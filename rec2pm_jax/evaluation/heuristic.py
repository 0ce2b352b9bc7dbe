"""Evaluate the heuristics with the ranks, protocols and records of every other method."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from rec2pm_jax.config import DataConfig
from rec2pm_jax.data.splits import SplitRule, bound_rule
from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.evaluation.histories import EvaluationData, Histories
from rec2pm_jax.evaluation.metrics import check_ranks, summarize, target_ranks
from rec2pm_jax.evaluation.record import Evaluation, dataset_name
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import Targets, select_targets, target_items
from rec2pm_jax.methods.heuristics import personal_frequency, training_popularity

HEURISTICS = ("popularity", "personal_frequency")
_CELLS = 1 << 20  # scores ranked at a time


@dataclasses.dataclass(frozen=True)
class Heuristic:
    """A ranking without trained parameters, see `methods.heuristics`.

    Attributes:
      name: "popularity" or "personal_frequency".
      window: number of newest events that personal frequency counts; None for all.
      half_life: decay of personal frequency, in events; None for no decay.

    Raises:
      UserError: an unknown name, a negative setting, or a setting that popularity does not have.

    >>> Heuristic("personal_frequency", window=50)
    Heuristic(name='personal_frequency', window=50, half_life=None)
    """

    name: str
    window: int | None = None
    half_life: float | None = None

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
        if self.name == "popularity" and (self.window or self.half_life):
            raise UserError(
                "window and half_life belong to personal_frequency; popularity has none."
            )

    def scores(self, history: np.ndarray, popularity: np.ndarray) -> np.ndarray:
        """Return the score of each item for one user: float64 [V].

        Args:
          history: int [n], item ids of the user's events in order.
          popularity: float64 [V], see `dataset_popularity`.
        """
        if self.name == "popularity":
            return popularity
        window, half_life = self.window or 0, self.half_life or 0.0
        return personal_frequency(history, popularity, window=window, half_life=half_life)


def evaluate_heuristic(
    heuristic: Heuristic,
    dataset: EvaluationData,
    spec: EvalSpec,
    data: DataConfig | None = None,
) -> Evaluation:
    """Rank every target by a heuristic that is given the user's whole history before it.

    Popularity counts the training events of all users, whichever are evaluated.

    Args:
      heuristic: which heuristic, and its settings.
      dataset: a prepared dataset, or a view of some of its users.
      spec: split, protocol and users; what concerns memory is ignored.
      data: the settings of the protocol, and the protocol if `spec` names none; None for the
        defaults.

    Returns:
      The ranks and metrics.

    Raises:
      UserError: the protocol leaves out what a model has read, or no user has targets.
    """
    began = time.perf_counter()
    data = data or DataConfig()
    protocol = spec.protocol or data.protocol
    rule = bound_rule(data, dataset, protocol)
    if rule.mask_seen:
        raise UserError(
            f"protocol={protocol} leaves out what a model reads; heuristics read nothing. Use "
            "leave_one_out or last_10."
        )
    users, skipped, histories, targets = select_targets(
        dataset, rule, spec.split, spec.max_users, spec.seed
    )
    if spec.corrupt is not None:
        histories = spec.corrupt(histories, targets)
    ranks = _rank(heuristic, histories, targets, dataset_popularity(dataset, rule))
    return Evaluation(
        method=heuristic.name,
        memory="none",
        backbone=None,
        dataset=dataset_name(dataset.info),
        data_hash=dataset.content_hash,
        split=spec.split,
        protocol=protocol,
        user=users[targets.user],
        position=targets.position,
        rank=ranks,
        swapped_rank=None,
        metrics=summarize(ranks, targets.user, sets=rule.predicts_sets),
        skipped_users=skipped,
        wall_s=time.perf_counter() - began,
    )


def dataset_popularity(dataset: EvaluationData, rule: SplitRule) -> np.ndarray:
    """Return `training_popularity` of all users' training events under a split rule: float64 [V]."""
    sequences = (dataset.sequence(i).ids for i in range(dataset.num_users))
    training = (
        ids[:end] for ids, end in zip(sequences, rule.train_ends(dataset.lengths), strict=True)
    )
    return training_popularity(training, dataset.num_items)


def _rank(
    heuristic: Heuristic, histories: Histories, targets: Targets, popularity: np.ndarray
) -> np.ndarray:
    """Return the pessimistic rank of each target: int64 [T]."""

    def scores(user: int, position: int) -> np.ndarray:
        begin = histories.offsets[user]
        return heuristic.scores(histories.ids[begin : begin + position], popularity)

    item = target_items(histories, targets)
    ranks = np.zeros(len(item), np.int64)
    chunk = max(1, _CELLS // len(popularity))
    for begin in range(0, len(item), chunk):
        part = slice(begin, begin + chunk)
        pairs = zip(targets.user[part], targets.position[part], strict=True)
        ranks[part] = target_ranks(np.stack([scores(*pair) for pair in pairs]), item[part])
    return check_ranks(ranks)
