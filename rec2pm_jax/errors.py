"""Errors a user can cause and fix. Launch commands print them as one line and exit with code 1."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message names the file, row, flag or shape and says what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the known word closest to `name`.

    Args:
      name: the word that was given.
      known: the words that are allowed.

    Returns:
      ' Did you mean "x"?', or '' when no known word is close.

    >>> nearest("batchsize", ["batch_size", "steps"])
    ' Did you mean "batch_size"?'
    >>> nearest("colour", ["batch_size", "steps"])
    ''
    """
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""
