"""States of users as values: times move with the origin, numbers of events do not."""

from __future__ import annotations

import numpy as np

from rec2pm_jax.methods.exact_memory import MAX_CLOCK
from rec2pm_jax.stream.users.user_state import UserState
from rec2pm_jax.typing import Events, ExactMemory, State


def test_clocks_move_with_the_origin_where_they_are_times():
    exact = ExactMemory(
        *(np.array(row, np.int32) for row in ([7, 8, 9, 0], [600, 300, 256, 0], [5, 0, 90, 0]))
    )
    none = np.zeros((), np.int32)
    state = State(np.zeros((0, 8), np.float32), none, none, exact)
    pending = Events(np.array([1], np.int32), np.array([6000], np.int32))
    user = UserState(state, pending, 13, 6600, time_origin=600)
    for origin, last in ((0, [15, 10, 100, 0]), (1200, [0, 0, 80, 0]), (600, [5, 0, 90, 0])):
        moved = user.with_time_origin(origin, clocks_are_times=True)
        assert moved.pending.times.tolist() == [6600 - origin]
        assert moved.state.exact.last.tolist() == last
        assert moved.state.exact.last.dtype == np.int32 and moved.time_origin == origin
        counted = user.with_time_origin(origin, clocks_are_times=False)
        assert counted.pending.times.tolist() == [6600 - origin]
        np.testing.assert_array_equal(counted.state.exact.last, exact.last)
    early = user.with_time_origin(600 - 60 * MAX_CLOCK, clocks_are_times=True)
    assert early.state.exact.last.tolist() == [MAX_CLOCK] * 3 + [0]
