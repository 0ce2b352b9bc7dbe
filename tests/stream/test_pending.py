"""Pending events come back as they were, whether appended one by one or encoded at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.stream.users.pending import PendingEvents

NUMBERS = st.one_of(
    st.sampled_from([0, 1, 127, 128, 2**14 - 1, 2**14, 2**31 - 1, 2**32]), st.integers(0, 2**33)
)


@given(data=st.data(), width=st.integers(1, 3))
def test_events_appended_dropped_and_stored(data, width):
    fields = st.tuples(*[NUMBERS] * width)
    first, more = (data.draw(st.lists(fields, max_size=6)) for _ in range(2))
    events = PendingEvents.of(np.array(first, np.int64).reshape(-1, width))
    for event in more:
        events.append(event)
    drop = data.draw(st.integers(0, 13))
    events.drop(drop)
    expected = (first + more)[drop:]
    assert len(events) == len(expected)
    assert events.numbers().tolist() == [list(event) for event in expected]
    assert events == PendingEvents.of(np.array(expected, np.int64).reshape(-1, width))


def test_a_byte_holds_seven_bits():
    events = PendingEvents(width=2)
    events.append((300, 5))
    assert events.data == bytes([300 & 127 | 128, 300 >> 7, 5])
