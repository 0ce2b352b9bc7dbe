"""The result of an evaluation, and the JSON record that tables and comparisons are made of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.evaluation.bootstrap import bootstrap
from rec2pm_jax.evaluation.metrics import user_metrics
from rec2pm_jax.json_file import write_json
from rec2pm_jax.os_errors import write_error


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Ranks of one method on one split, with what names the setting.

    Attributes:
      method: name of the method or heuristic.
      memory: "overwrite", "append", "one_time" or "none".
      backbone: name of the backbone; None for heuristics.
      dataset: name of the dataset.
      data_hash: content hash of the dataset.
      split: "validation" or "test".
      protocol: name of the split rule.
      user: int64 [T], dataset index of each target's user; targets are ordered by user.
      position: int64 [T], number n of events [0, n) that each target is predicted from.
      event: int64 [T], position of each target in its history.
      rank: int64 [T], from 1.
      swapped_ranks: part of the state that is another user's -> int64 [T]; see
        `memory_states.swap_parts`.
      metrics: see `metrics.summarize`.
      skipped_users: number of users with too few events for the protocol.
      wall_s: seconds, compilation included.
      request_time_known: whether predictions used the time of their target.
      target_types: the event types that are targets, as in `config.loss.target_types`; None for all.
      cutoffs: numbers of places at which all families of metrics are among the metrics.
      list_metrics: see `list_metrics`; None if they are not measured.
      slices: see `slices.slice_metrics`; None if they are not measured.
      settings: what records add to their `config`: the settings of a heuristic.
      state_bytes_per_user: capacity of the memory.
      state_used_bytes: mean bytes in use with memory "append"; None for other memories.
      state_bookkeeping_bytes: bytes of the rest of the state.
      memory_variance: variance between users of the final memories, mean over elements; None
        without memory.
    """

    method: str
    memory: str
    backbone: str | None
    dataset: str
    data_hash: str
    split: str
    protocol: str
    user: np.ndarray
    position: np.ndarray
    event: np.ndarray
    rank: np.ndarray
    swapped_ranks: Mapping[str, np.ndarray]
    metrics: Mapping[str, float]
    skipped_users: int
    wall_s: float
    request_time_known: bool = False
    target_types: str | None = None
    cutoffs: Sequence[int] = ()
    list_metrics: Mapping[str, Any] | None = None
    slices: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state_bytes_per_user: int | None = None
    state_used_bytes: float | None = None
    state_bookkeeping_bytes: int | None = None
    memory_variance: float | None = None

    @property
    def users(self) -> int:
        """Number of users with targets."""
        return len(np.unique(self.user))

    @property
    def user_ndcg(self) -> np.ndarray:
        """ndcg@10 of each user, float64, ascending by user: samples of a paired bootstrap."""
        return self.user_metrics(self.rank)["ndcg@10"]

    def user_metrics(self, ranks: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of each user for `ranks` int64 [T], as the protocol defines them."""
        sets = split_rule(self.protocol).predicts_sets
        return user_metrics(ranks, self.user, sets=sets, cutoffs=self.cutoffs)

    def record(
        self,
        *,
        config: Mapping[str, Any],
        config_hash: str | None = None,
        seed: int | None = None,
        step: int | None = None,
        git_commit: str | None = None,
    ) -> dict[str, Any]:
        """Return the evaluation record, ready for JSON; metrics are fractions of 1.

        Args:
          config: nested plain dicts: the whole configuration, or the settings of the protocol for a
            heuristic.
          config_hash: hash of the configuration of the training run; None for heuristics.
          seed: seed of the training run; None for heuristics.
          step: step of the evaluated checkpoint; None for heuristics.
          git_commit: see `provenance.git_commit`.
        """
        swaps = {
            part: float(self.user_metrics(ranks)["ndcg@10"].mean())
            for part, ranks in self.swapped_ranks.items()
        }
        swap = {"ndcg@10": swaps.pop("all"), **swaps} if swaps else None
        by_user = self.user_metrics(self.rank)
        return {
            "method": self.method,
            "memory": self.memory,
            "backbone": self.backbone,
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "target_types": self.target_types,
            "users": self.users,
            "targets": len(self.rank),
            "skipped_users": self.skipped_users,
            "metrics": dict(self.metrics),
            "intervals": {
                name: list(bootstrap(by_user[name])[1:]) for name in ("ndcg@10", "hr@10")
            },
            "cutoffs": list(self.cutoffs),
            "list_metrics": self.list_metrics,
            "slices": self.slices,
            "seen_masked": split_rule(self.protocol).mask_seen,
            "request_time_known": self.request_time_known,
            "state_bytes_per_user": self.state_bytes_per_user,
            "state_used_bytes": self.state_used_bytes,
            "state_bookkeeping_bytes": self.state_bookkeeping_bytes,
            "swap": swap,
            "memory_variance": self.memory_variance,
            "seed": seed,
            "step": step,
            "wall_s": round(self.wall_s, 3),
            "config": {**self.settings, **config},
            "config_hash": config_hash,
            "data_hash": self.data_hash,
            "git_commit": git_commit,
        }


def dataset_name(info: Mapping[str, Any]) -> str:
    """Return the name of a dataset in records: its source, and the item level if it has one.

    >>> dataset_name({"source": "complete_journey", "item_level": "product_type"})
    'complete_journey/product_type'
    """
    level = info["item_level"]
    return info["source"] if level == "item" else f"{info['source']}/{level}"


def write_records(path: str | os.PathLike, records: list | dict) -> None:
    """Write records as JSON, atomically.

    Raises:
      UserError: the path cannot be written.
    """
    try:
        write_json(Path(path), records)
    except OSError as error:
        raise write_error(Path(path), error) from error
