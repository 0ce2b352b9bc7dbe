"""Rec2PM in JAX: recurrent preference memory for recommendation from long histories.

`load` opens a trained run; `stream.recommender.Recommender` says what can be done with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rec2pm_jax.stream.recommender import Recommender

__all__ = ["load"]


def load(
    workdir: str | Path, data: str | Path | None = None, checkpoint: str = "best"
) -> Recommender:
    """Loads a trained model to update memories and recommend; see `stream.recommender`.

    Args:
      workdir: of a training run (`launch.train`), finished or not.
      data: the prepared dataset it was trained on; by default where the run says it lies.
      checkpoint: best (by validation NDCG@10) or latest.

    Raises:
      UserError: no readable checkpoint, no dataset, or a dataset with another content.
    """
    from rec2pm_jax.stream.load import load_recommender  # JAX and Orbax take seconds to import

    return load_recommender(workdir, data, checkpoint)
