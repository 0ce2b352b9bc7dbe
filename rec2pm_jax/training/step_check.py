"""Check the metrics of a step, and explain to users why it was not applied."""

from __future__ import annotations

from collections.abc import Mapping

from rec2pm_jax.errors import UserError


def check_step(step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of a step to log.

    Args:
      step: number of the step, from 1.
      metrics: of `make_train_step` or `make_sharded_step`, on the host.

    Returns:
      The metrics without the flags `fits` and `finite`.

    Raises:
      UserError: the step was not applied, because its loss or gradient is not finite, or because a
        bucket of a sharded table overflowed.

    >>> check_step(1, {"loss/total": 2.5, "finite": 1.0})
    {'loss/total': 2.5}
    """
    metrics = dict(metrics)
    if not metrics.pop("fits", 1):
        raise _overflow_error(step, metrics)
    if not metrics.pop("finite"):
        raise _not_finite_error(step, metrics)
    return metrics


def _not_finite_error(step: int, metrics: Mapping[str, float]) -> UserError:
    values = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items() if name != "tokens")
    return UserError(
        f"Step {step}: the loss or its gradient is not finite ({values}); the update was not "
        "applied and the last checkpoint stands. Lower config.optim.learning_rate, raise "
        "config.optim.warmup_steps, set config.optim.clip_norm, or use config.model.dtype=float32."
    )


def _overflow_error(step: int, metrics: Mapping[str, float]) -> UserError:
    needed, capacity = int(metrics["bucket_rows"]), int(metrics["bucket_capacity"])
    return UserError(
        f"Step {step}: a device asks another for {needed} rows of the item table, and a bucket holds "
        f"{capacity}; the update was not applied and the last checkpoint stands. Start again with "
        f"--config.compute.bucket_rows={-(-needed * 9 // 8)} (at least {needed}); the result does "
        "not depend on it."
    )
