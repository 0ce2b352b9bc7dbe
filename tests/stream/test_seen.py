"""What users have seen: an exact set, in the process and in records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.data.dataset import UserSequence
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.users.seen import SeenItems

EVENTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3), st.integers(0, 9)), max_size=30)


@pytest.mark.smoke
@settings(max_examples=60, deadline=None)
@given(
    events=EVENTS, detailed=st.booleans(), types=st.sets(st.integers(0, 3)), since=st.integers(0, 9)
)
def test_a_set_is_what_a_loop_over_all_events_finds(events, detailed, types, since):
    events = sorted(events, key=lambda event: event[2])  # in order of time
    seen = SeenItems(detailed)
    for item, kind, time in events:
        seen.add(item, kind, 100 + time)
    assert set(seen.select(None, None).tolist()) == {item for item, _, _ in events}
    if detailed:
        recent = {i for i, kind, time in events if kind in types and time >= since}
        assert set(seen.select(frozenset(types), 100 + since).tolist()) == recent
    ids, kinds, times = (
        (np.array(column, np.int32) for column in zip(*events, strict=True))
        if (events)
        else (np.zeros(0, np.int32),) * 3
    )
    made = SeenItems.of_sequence(UserSequence("u", ids, times, kinds), 100, detailed)
    assert made.to_bytes() == seen.to_bytes()
    assert len(seen.to_bytes()) == seen.nbytes
    read = SeenItems.from_bytes(seen.to_bytes() + b"more", detailed)
    assert read.to_bytes() == seen.to_bytes()
    copy = seen.copy()
    copy.add(9, 0, 1)
    assert 9 not in seen.items


def test_an_event_without_a_time_has_any_age_and_a_cut_record_is_refused():
    seen = SeenItems(detailed=True)
    seen.add(5, 0, None)
    seen.add(6, 0, 50)
    assert seen.select(None, since=60).tolist() == [5]
    with pytest.raises(UserError, match="cut off"):
        SeenItems.from_bytes(seen.to_bytes()[:-1], detailed=True)
    with pytest.raises(UserError, match="cut off"):
        SeenItems.from_bytes(b"", detailed=True)
