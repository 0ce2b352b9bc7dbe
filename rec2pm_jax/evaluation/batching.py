"""Cut work into pieces of few different shapes, so that little is compiled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def padded_batches(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut `order` into pieces of `size`; the last one is padded with -1.

    >>> [piece.tolist() for piece in padded_batches(np.array([7, 8, 9]), 2)]
    [[7, 8], [9, -1]]
    """
    for begin in range(0, len(order), size):
        piece = order[begin : begin + size]
        yield np.pad(piece, (0, size - len(piece)), constant_values=-1)


def round_up_count(n: int) -> int:
    """Return the smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is at least `n`.

    >>> [round_up_count(n) for n in (3, 5, 13)]
    [3, 6, 16]
    """
    power = 1 << max(0, int(n - 1).bit_length())
    return 3 * power // 4 if power >= 4 and 3 * power // 4 >= n else power
