"""What an evaluation found, and the JSON record that tables and comparisons are made of."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rec2pm_jax.data.splits import split_rule
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.bootstrap import bootstrap
from rec2pm_jax.evaluate.metrics import hits, ndcg, user_means


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Ranks of one method on one split, with what names the setting.

    Attributes:
      method, memory, backbone, dataset, split, protocol: names as in the record; backbone None for
        heuristics.
      data_hash: content hash of the dataset.
      user: int64 [T], dataset index of each target's user; targets are ordered by user.
      position: int64 [T], the target's position n: predicted from events [0, n).
      rank: int64 [T], from 1.
      swapped_rank: int64 [T] with another user's memory, or None.
      metrics: see `metrics.summarize`.
      skipped_users: users with too few events for the protocol.
      state_bytes_per_user: capacity of the memory; state_used_bytes: mean in use (append), or None.
      state_bookkeeping_bytes: the rest of the state.
      memory_variance: mean over elements of the variance between users' final memories, or None.
      wall_s: seconds, compilation included.
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
    rank: np.ndarray
    swapped_rank: np.ndarray | None
    metrics: Mapping[str, float]
    skipped_users: int
    wall_s: float
    state_bytes_per_user: int | None = None
    state_used_bytes: float | None = None
    state_bookkeeping_bytes: int | None = None
    memory_variance: float | None = None

    @property
    def users(self) -> int:
        return len(np.unique(self.user))

    @property
    def user_ndcg(self) -> np.ndarray:
        """Mean ndcg@10 of each user, ascending by user: the samples of a paired bootstrap."""
        return user_means(ndcg(self.rank, 10), self.user)

    def record(
        self,
        *,
        config: Mapping[str, Any],
        config_hash: str | None = None,
        seed: int | None = None,
        step: int | None = None,
        git_commit: str | None = None,
    ) -> dict[str, Any]:
        """The evaluation record, JSON-ready; metrics are fractions of 1.

        Args:
          config: nested plain dicts: the whole configuration, or a heuristic's settings.
          config_hash, seed, step: of the training run; None for heuristics.
          git_commit: see `provenance.git_commit`.
        """
        swap = None
        if self.swapped_rank is not None:
            swap = {"ndcg@10": float(user_means(ndcg(self.swapped_rank, 10), self.user).mean())}
        per_user_hits = user_means(hits(self.rank, 10), self.user)
        return {
            "method": self.method,
            "memory": self.memory,
            "backbone": self.backbone,
            "dataset": self.dataset,
            "split": self.split,
            "protocol": self.protocol,
            "users": self.users,
            "targets": len(self.rank),
            "skipped_users": self.skipped_users,
            "metrics": dict(self.metrics),
            "intervals": {
                "ndcg@10": list(bootstrap(self.user_ndcg)[1:]),
                "hr@10": list(bootstrap(per_user_hits)[1:]),
            },
            "seen_masked": split_rule(self.protocol).mask_seen,
            "state_bytes_per_user": self.state_bytes_per_user,
            "state_used_bytes": self.state_used_bytes,
            "state_bookkeeping_bytes": self.state_bookkeeping_bytes,
            "swap": swap,
            "memory_variance": self.memory_variance,
            "seed": seed,
            "step": step,
            "wall_s": round(self.wall_s, 3),
            "config": dict(config),
            "config_hash": config_hash,
            "data_hash": self.data_hash,
            "git_commit": git_commit,
        }


def dataset_name(info: Mapping[str, Any]) -> str:
    """Name of a prepared dataset in records: its source, and the item level unless plain items."""
    level = info["item_level"]
    return info["source"] if level == "item" else f"{info['source']}/{level}"


def write_records(path: str | os.PathLike, records: list | dict) -> None:
    """Writes JSON atomically (temporary name, then rename); NaN is refused.

    Raises:
      UserError: the path cannot be written.
    """
    path = Path(path)
    text = json.dumps(records, indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # often it was never created
            temporary.unlink()
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
