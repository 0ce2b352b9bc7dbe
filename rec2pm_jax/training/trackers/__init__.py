"""Trackers: writers that show the metrics of runs in MLflow or in Weights & Biases."""

from __future__ import annotations

from rec2pm_jax.errors import UserError, nearest
from rec2pm_jax.training.observers import Tracker

KINDS = ("mlflow", "wandb")


def open_tracker(text: str) -> Tracker:
    """Return the tracker that a flag names; it connects once a run starts.

    Args:
      text: `mlflow`, `mlflow:URI`, `wandb`, `wandb:PROJECT` or `wandb:ENTITY/PROJECT`.

    Raises:
      UserError: an unknown kind, or its package is not installed.
    """
    kind, _, place = text.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"--tracker={text}: choose mlflow, mlflow:URI, wandb or wandb:PROJECT."
            f"{nearest(kind, KINDS)}"
        )
    try:
        if kind == "mlflow":
            from rec2pm_jax.training.trackers.mlflow_tracker import MlflowTracker

            return MlflowTracker(place)
        from rec2pm_jax.training.trackers.wandb_tracker import WandbTracker

        return WandbTracker(place)
    except ImportError as error:
        raise UserError(
            f"--tracker={text} needs {error.name}: pip install 'rec2pm_jax[{kind}]'."
        ) from error
