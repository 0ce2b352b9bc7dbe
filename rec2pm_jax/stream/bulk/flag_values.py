"""Filters as the flags of `launch.recommend` state them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.lines.events import RejectedInput
from rec2pm_jax.stream.lines.requests import Filters, parse_filters


def filters_of_flags(texts: Mapping[str, str], rules: ValueRules) -> Filters:
    """Return the filters that flags state.

    Args:
      texts: the values of --exclude_seen, --candidates, --allow and --deny; "" for no filter. A value
        is JSON as in a request, "all", ids between commas, or @FILE with JSON or an id on each line.
      rules: how the ids of the training data were read.

    Raises:
      UserError: a value is malformed; the message names the flag.

    >>> filters_of_flags({"exclude_seen": "all", "deny": "a,b"}, ValueRules()).deny.items
    ('a', 'b')
    """
    given = {name: _read(name, text) for name, text in texts.items() if text}
    try:
        return parse_filters(given, rules)
    except RejectedInput as error:
        raise UserError(f"Filters: {error}.") from None


def _read(flag: str, text: str) -> Any:
    name, lines = f"--{flag}={text}", None
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{name} cannot be read: {error}.") from error
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(f"{name} is not JSON ({error}).") from None
    if flag == "exclude_seen":
        return text  # "all", or nothing that `parse_filters` takes
    return lines if lines is not None else [part.strip() for part in text.split(",")]
