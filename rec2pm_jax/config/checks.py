"""Checks of configuration values; each names the field, the rule and the value."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rec2pm_jax.errors import UserError, nearest


def require(ok: bool, field: str, rule: str, value: object) -> None:
    if not ok:
        raise UserError(f"config.{field} must be {rule}, got {value!r}.")


def require_at_least(least: float, section: str, config: object, fields: Iterable[str]) -> None:
    """Check that fields which are not None are at least `least`."""
    for field in fields:
        value = getattr(config, field)
        require(value is None or value >= least, f"{section}.{field}", f">= {least}", value)


def require_one_of(value: str, options: tuple[str, ...], field: str) -> None:
    if value not in options:
        raise UserError(
            f"config.{field}={value!r} is unknown; choose one of {', '.join(options)}."
            f"{nearest(str(value), options)}"
        )


LARGEST_INT = 2**31 - 1  # devices count in 32 bits


def require_representable(section: str, config: object) -> None:
    """Check that numbers are finite and fit the arithmetic of devices."""
    for field, value in vars(config).items():
        if isinstance(value, float):
            require(math.isfinite(value), f"{section}.{field}", "finite", value)
            require(abs(value) < 1e30, f"{section}.{field}", "below 1e30", value)
        elif isinstance(value, int) and field != "seed":
            require(value <= LARGEST_INT, f"{section}.{field}", "below 2**31", value)
