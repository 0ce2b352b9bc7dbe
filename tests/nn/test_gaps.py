"""Buckets against their definitions, at every edge."""

from __future__ import annotations

import numpy as np

from rec2pm_jax.nn.gaps import GAPS, WEIGHTS, bit_length, gap_buckets, weight_buckets
from tests.helpers.numpy_reference import gap_bucket

LARGEST = 2**31 - 1


def weight_bucket(number: int) -> int:
    """Two buckets per octave; what lies beyond the last one belongs to it."""
    if number < 2:
        return 2 * number
    octave = 0
    while number >= 2 ** (octave + 1):
        octave += 1
    upper = 2 * number >= 3 * 2**octave
    return min(2 * (octave + 1) + upper, WEIGHTS - 1)


def around(edges):
    near = {edge + step for edge in edges for step in (-1, 0, 1)}
    return np.array(sorted(n for n in near if -LARGEST - 1 <= n <= LARGEST), np.int32)


def test_gaps_by_octaves_of_minutes():
    gaps = around([0, 60, *(60 * 2**k for k in range(26)), -60, -LARGEST, LARGEST])
    expected = [gap_bucket(int(gap)) for gap in gaps]
    np.testing.assert_array_equal(gap_buckets(gaps), expected)
    assert set(expected) == set(range(GAPS))


def test_gaps_in_other_units():
    """Minutes, or numbers of events."""
    gaps = around([0, *(2**k for k in range(31)), -5, LARGEST])
    np.testing.assert_array_equal(
        gap_buckets(gaps, unit=1), [gap_bucket(60 * int(gap)) for gap in gaps]
    )


def test_weights_by_half_octaves():
    weights = around([0, 1, *(2**k for k in range(31)), *(3 * 2**k for k in range(29)), LARGEST])
    weights = weights[weights >= 0]
    expected = [weight_bucket(int(weight)) for weight in weights]
    np.testing.assert_array_equal(weight_buckets(weights), expected)
    assert set(expected) == set(range(WEIGHTS)) - {1, 3}  # 0 and 1 have an octave each


def test_bit_length():
    numbers = np.unique(around([0, *(2**k for k in range(31)), LARGEST]).clip(0))
    np.testing.assert_array_equal(bit_length(numbers), [int(n).bit_length() for n in numbers])
