"""The text of `config.loss.target_types`: which event types are predicted, and with which weights."""

from __future__ import annotations

import math

from rec2pm_jax.errors import UserError


def parse_target_types(text: str) -> dict[str, float]:
    """Return the weight of each target type.

    >>> parse_target_types("purchase,cart=0.3")
    {'purchase': 1.0, 'cart': 0.3}

    Args:
      text: names with commas between them; `name=weight` gives a weight other than 1.

    Returns:
      {name: weight}, in the order of the text.

    Raises:
      UserError: an empty name, a name that occurs twice, or a weight that is not above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        name = name.strip()
        weight = _read_weight(number) if equals else 1.0
        if not name or name in weights or not 0 < weight < math.inf:
            what = f"names {name!r} twice" if name in weights else f"has {part.strip()!r}"
            raise UserError(
                f"target_types={text} {what}; write names, with weights above 0 where "
                "they are not 1, for example purchase,cart=0.3."
            )
        weights[name] = weight
    return weights


def _read_weight(text: str) -> float:
    """Return the number, or NaN for another text."""
    try:
        return float(text)
    except ValueError:
        return math.nan
