"""One row per evaluated user, as a Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data.polars_io import write_parquet
from rec2pm_jax.evaluation.histories import EvaluationData
from rec2pm_jax.evaluation.record import Evaluation
from rec2pm_jax.json_file import replaced_file
from rec2pm_jax.os_errors import check_path, write_error


def user_rows(evaluation: Evaluation, dataset: EvaluationData) -> pl.DataFrame:
    """Return a row for each user with targets, in the order of the dataset.

    Args:
      evaluation: of a method or a heuristic.
      dataset: the dataset that was evaluated.

    Returns:
      Columns `user` (raw id), `history` (events before the first target), `targets`, `best_rank`, and
      every metric as a fraction of 1. With another user's memory: `swapped_ndcg@10`.
    """
    users, first, counts = np.unique(evaluation.user, return_index=True, return_counts=True)
    columns = {
        "user": [sequence.user for sequence in dataset.sequences(users)],
        "history": evaluation.position[first],
        "targets": counts,
        "best_rank": np.minimum.reduceat(evaluation.rank, first),
        **evaluation.user_metrics(evaluation.rank),
    }
    if evaluation.swapped_ranks:
        swapped = evaluation.user_metrics(evaluation.swapped_ranks["all"])
        columns["swapped_ndcg@10"] = swapped["ndcg@10"]
    return pl.DataFrame(columns)


def write_user_rows(path: str | Path, evaluation: Evaluation, dataset: EvaluationData) -> None:
    """Write `user_rows` as Parquet, atomically.

    Args:
      path: of the file.
      evaluation: of a method or a heuristic.
      dataset: the dataset that was evaluated.

    Raises:
      UserError: the path cannot be written.
    """
    check_path(path)
    rows = user_rows(evaluation, dataset)
    try:
        with replaced_file(Path(path)) as temporary:
            write_parquet(rows, temporary)
    except OSError as error:
        raise write_error(path, error) from error
