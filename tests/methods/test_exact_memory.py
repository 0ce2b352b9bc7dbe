"""The exact memory bit for bit against a dictionary, in serving, in training and as bytes."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rec2pm_jax.methods.exact_memory import (
    MAX_CLOCK,
    MAX_WEIGHT,
    empty_exact,
    event_clock,
    total_weight,
    update_exact,
)
from rec2pm_jax.methods.state_format import StateFormat
from rec2pm_jax.methods.windows import cut_windows
from rec2pm_jax.typing import Events, ExactMemory, State
from tests.helpers.methods import batch_of, columns, histories, known_window, make, random_state

B, S, K = 2, 3, 3
update = jax.jit(update_exact)


def slow_update(entries, events, size):
    """Entries (item, weight, last) after a segment of events (item, clock)."""
    if not any(item for item, _ in events):
        return entries
    table = {item: (weight - (weight >> 4), last) for item, weight, last in entries}
    for item, clock in events:
        if item:
            weight, last = table.get(item, (0, 0))
            table[item] = (min(weight + 256, 65535), max(last, clock))
    rows = [(item, *numbers) for item, numbers in table.items()]  # in order of entry
    return sorted(rows, key=lambda row: (-row[1], -row[2]))[:size]


def as_table(users, size):
    """Tables of users with these entries."""
    table = np.zeros((3, len(users), size), np.int32)
    for user, entries in enumerate(users):
        if entries:
            table[:, user, : len(entries)] = np.transpose(entries)
    return ExactMemory(*table)


def assert_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


items = st.integers(0, 6)
clocks = st.one_of(st.integers(0, 4), st.integers(0, MAX_CLOCK))
weights = st.one_of(st.integers(1, 1024), st.integers(MAX_WEIGHT - 4200, MAX_WEIGHT))
starts = st.lists(
    st.tuples(st.integers(1, 9), weights, clocks), max_size=4, unique_by=lambda row: row[0]
)
segments = st.lists(st.lists(st.tuples(items, clocks), min_size=S, max_size=S), max_size=5)


@pytest.mark.smoke
@settings(max_examples=150, deadline=None)
@given(users=st.tuples(*[st.tuples(starts, segments)] * B), size=st.sampled_from([1, 2, 4, 8]))
def test_updates_are_those_of_a_dictionary(users, size):
    """From any tables, also full ones at the largest weights; some segments are empty or padded."""
    expected = [list(entries[:size]) for entries, _ in users]
    table = as_table(expected, size)
    for turn in range(max(len(segments) for _, segments in users)):
        empty = [(0, 0)] * S
        now = [segments[turn] if turn < len(segments) else empty for _, segments in users]
        events = np.array(now, np.int32)
        table = update(table, events[..., 0], events[..., 1])
        expected = [slow_update(e, n, size) for e, n in zip(expected, now, strict=True)]
        assert_equal(table, as_table(expected, size))


def test_an_empty_table_stays_empty():
    none = empty_exact(2, 0)
    ids = np.ones((2, S), np.int32)
    assert_equal(update(none, ids, ids), none)


def test_weights_fade_by_halves_in_eleven_segments():
    """A segment takes 1/16, so that 0.49 is left. The weights of an archive add up to about 16 S."""
    table = as_table([[(1, 1 << 15, 0)]], 2)
    for _ in range(11):
        table = update(table, np.array([[2, 0, 0]], np.int32), np.zeros((1, 3), np.int32))
    weight = np.asarray(table.weights)[np.asarray(table.items) == 1]
    assert 0.48 < weight.item() / (1 << 15) < 0.52
    table = empty_exact(1, 8)
    for count in range(60):
        ids = np.arange(S, dtype=np.int32)[None] + 1
        table = update(table, ids, ids)
        about = int(total_weight(np.int32(count + 1), S))
        assert 0.6 < np.asarray(table.weights).sum() / about < 1.01


def test_clocks_are_minutes_or_numbers_of_events():
    times = np.array([[59, 60, 3600 * 24], [-70, 2**31 - 1, 5]], np.int32)
    window = known_window(Events(times, times), np.array([3, 3], np.int32), times)
    before = np.array([0, 7], np.int32)
    minutes = event_clock(window, before, use_times=True)
    np.testing.assert_array_equal(minutes, [[0, 1, 1440], [0, MAX_CLOCK, 0]])
    numbers = event_clock(window, before, use_times=False)
    np.testing.assert_array_equal(numbers, [[0, 1, 2], [7, 8, 9]])


# --- methods ---


@functools.cache
def updating(method):
    return jax.jit(method.update)


def fold(method, params, events, valid):
    """The states before each segment and after the last one, as serving makes them."""
    states = [method.init_state(params, len(valid))]
    for h in range(K):
        at = slice(h * S, h * S + S)
        segment = columns(events, at.start, at.stop)
        states.append(updating(method)(params, states[-1], segment, valid[:, at]))
    return states


@pytest.mark.parametrize("bias", ["none", "position_time"])
def test_training_has_the_tables_of_serving(bias):
    """Before each segment of windows that are full, end within a segment, or have one event."""
    method, params = make("hstu", name="recent", bias=bias, recent=2)
    batch = batch_of([11, 8, 2], 11, times=True)
    cut = cut_windows(batch, method.config.data, None)
    got = method.memory.counts_before(cut)
    events = Events(batch["ids"][:, :-1], batch["times"][:, :-1])
    valid = (events.ids > 0) & (np.arange(10) < np.array([10, 8, 2])[:, None])
    *before, after = fold(method, params, events, valid)
    assert np.any(after.exact.items)
    for h, state in enumerate(before):
        of_segment = jax.tree.map(lambda a, h=h: a[h::K], got.exact)
        assert_equal(of_segment, state.exact)
        np.testing.assert_array_equal(got.segments[h::K], h)
    assert_equal(method.memory.exact_after(cut.history), after.exact)


def test_one_time_memory_has_the_same_table():
    method, params = make()
    events, valid = histories([9, 6, 0], 9)
    got = jax.jit(method.compress)(params, events, valid)
    assert_equal(got.exact, fold(method, params, events, valid)[-1].exact)


@pytest.mark.parametrize("name", ["recent", "rec2pm"])
def test_rows_without_events_keep_their_table(name):
    method, params = make(name=name)
    state = random_state(method, [1, 1, 1]) if name == "rec2pm" else method.init_state(params, 3)
    if name == "recent":
        state = updating(method)(params, state, *histories([3, 3, 3], S))
    events, valid = histories([3, 3, 3], S, seed=4)  # ids that are not valid do not count
    new = updating(method)(params, state, events, valid & np.array([[False], [True], [False]]))
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[::2], np.asarray(b)[::2])
    assert np.any(np.asarray(new.exact.weights)[1] != np.asarray(state.exact.weights)[1])


def test_sizes_of_the_table_by_method():
    entries = {name: make(name=name)[0].memory.entries for name in ("recent", "kv_mask", "full")}
    assert entries == {"recent": 4, "kv_mask": 4, "full": 0}
    assert make(name="recent")[0].stores_memory and not make(name="full")[0].stores_memory
    assert not make(name="recent", exact_entries=0)[0].stores_memory


# --- bytes ---


@settings(max_examples=50, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["float32", "bfloat16", "int8"]))
def test_a_stored_table_is_not_rounded(data, kind):
    num_items = data.draw(st.sampled_from([9, 2**24 - 1, 2**24, 2**31 - 2]))
    form = StateFormat(kind, slots=2, dim=4, entries=3, num_items=num_items)
    assert form.bytes == form.memory_bytes + 3 * (8 if num_items < 2**24 else 9)

    def numbers(highest):
        ends = st.sampled_from([0, 1, highest - 1, highest])
        return data.draw(
            arrays.arrays(np.int32, (2, 3), elements=st.one_of(ends, st.integers(0, highest)))
        )

    exact = ExactMemory(numbers(num_items), numbers(MAX_WEIGHT), numbers(MAX_CLOCK))
    memory = np.random.default_rng(0).normal(size=(2, 2, 4)).astype(np.float32)
    none = np.zeros(2, np.int32)
    encoded = form.encode(State(memory, none, none, exact))
    assert encoded.shape == (2, form.bytes) and encoded.dtype == np.uint8
    back, table = form.decode(encoded)
    assert back.shape == memory.shape
    np.testing.assert_allclose(back, memory, atol=0 if kind == "float32" else 0.03)
    assert_equal(table, exact)
    assert {a.dtype for a in table} == {np.dtype(np.int32)}


def test_a_state_without_preference_memory_or_without_table_has_its_bytes():
    form = StateFormat("int8", slots=0, dim=64, entries=2, num_items=9)
    table = as_table([[(9, 300, 70_000), (1, 256, 3)]], 2)
    none = np.zeros(1, np.int32)
    encoded = form.encode(State(np.zeros((1, 0, 64), np.float32), none, none, table))
    # Ids, then weights, then last times of each entry, the lowest byte first.
    first, second = [9, 0, 0, 44, 1, 112, 17, 1], [1, 0, 0, 0, 1, 3, 0, 0]
    assert encoded.tolist() == [first + second]
    memory, back = form.decode(encoded)
    assert memory.shape == (1, 0, 64)
    assert_equal(back, table)
    form = StateFormat("float32", slots=4, dim=64, entries=0, num_items=9)
    assert form.bytes == 1024
    held = np.random.default_rng(0).normal(size=(1, 4, 64)).astype(np.float32)
    memory, back = form.decode(form.encode(State(held, none, none, empty_exact(1, 0))))
    np.testing.assert_array_equal(memory, held)
    assert all(leaf.shape == (1, 0) for leaf in back)
