"""Segment arithmetic: properties for all lengths, and the table of a small case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.config import DataConfig
from rec2pm_jax.methods.segments import archived, plan_last, plan_memory

cuts = st.integers(1, 40).flatmap(
    lambda segment: st.tuples(st.just(segment), st.integers(1, segment))
)


@pytest.mark.smoke
def test_small_table():
    n = np.arange(10)
    np.testing.assert_array_equal(archived(n, 3, 1), [0, 0, 0, 0, 3, 3, 3, 6, 6, 6])
    np.testing.assert_array_equal(archived(n, 3, 3), [0, 0, 0, 0, 0, 0, 3, 3, 3, 6])


@given(cuts, st.integers(0, 10_000))
def test_raw_events_stay_between_recent_and_recent_plus_segment(cut, n):
    segment, recent = cut
    a = archived(n, segment, recent)
    assert a % segment == 0 and 0 <= a <= max(0, n - recent)
    if n >= recent:
        assert recent <= n - a < recent + segment
    else:
        assert a == 0


@given(cuts, st.integers(0, 10_000))
def test_one_more_event_archives_at_most_one_segment(cut, n):
    segment, recent = cut
    assert archived(n + 1, segment, recent) - archived(n, segment, recent) in (0, segment)


@given(cuts, st.integers(0, 10_000), st.integers(0, 5))
def test_memory_plan_covers_the_history(cut, n, horizon):
    data = DataConfig(segment=cut[0], recent=cut[1])
    updates, first, start = plan_memory(n, data, horizon)
    assert (first + updates) * data.segment == start == archived(n, *cut)
    assert n - start <= data.read_length
    if horizon:
        assert updates == min(horizon, start // data.segment)
    else:
        assert first == 0
        assert plan_memory(n, data) == (updates, first, start)  # the default: all segments


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_last_events_plan(n, length):
    updates, first, start = plan_last(n, length)
    assert updates == first == 0 and n - start == min(n, length)


@given(cuts, st.integers(1, 500))
def test_recent_never_has_fewer_raw_events_than_memory(cut, n):
    data = DataConfig(segment=cut[0], recent=cut[1])
    assert plan_last(n, data.read_length).start <= plan_memory(n, data).start


def test_plans_are_elementwise():
    data = DataConfig(segment=3, recent=2)
    lengths = np.array([0, 1, 4, 5, 11])
    whole = plan_memory(lengths, data, 2)
    for i, n in enumerate(lengths):
        assert tuple(x[i] for x in whole) == tuple(plan_memory(n, data, 2))
