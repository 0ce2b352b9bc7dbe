"""Both passes against slow models that write `[S_0..S_h; Q]` and `[M; S; Q]` out for one user."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods.rec2pm import reference_inputs
from rec2pm_jax.typing import State
from tests.helpers import numpy_reference as slow
from tests.helpers.methods import (
    DIM,
    ENTRIES,
    SLOTS,
    assert_update_keeps_shapes,
    columns,
    histories,
    known_window,
    make,
    parts,
    random_state,
    reference_pass,
    to_memory,
    update_pass,
)

BACKBONES = [("sasrec", "none"), ("hstu", "position_time")]
backbones = pytest.mark.parametrize(("backbone", "bias"), BACKBONES)
LENGTHS = [9, 7, 4]  # of 9: three segments, two and a part, one and a part
S, K = 3, 3
CLOSE = dict(rtol=2e-4, atol=2e-4)
ROUNDING = dict(rtol=0, atol=1e-5)  # values of order one; sums of other lengths round otherwise


def tokens_of(method, params, name, *args):
    return method.memory.apply(params, name, *args)


def left(method, params, outputs):
    return np.asarray(
        tokens_of(method, params, "from_query_outputs", jnp.asarray(outputs, jnp.float32))
    )


def asked(times, lengths):
    """Times the events ask for: the next event's, 50 s later for the last one. None without times."""
    if times is None:
        return None
    following = np.roll(times, -1, axis=1)
    last = np.arange(times.shape[1]) == np.array(lengths)[:, None] - 1
    return np.where(last, times + 50, following).astype(np.int32)


def slow_events(params, events, asks, user, start, stop, wrap=S + 2):
    def cut(x):
        return None if x is None else x[user, start:stop]

    args = (cut(events.ids), cut(events.times), cut(asks))
    return slow.event_tokens(slow.float64(params), *args, wrap=wrap)


@pytest.mark.parametrize("window", [None, 1, 2])
@backbones
def test_reference_pass_is_every_query_group_in_a_pass_of_its_own(backbone, bias, window):
    method, params = make(backbone, bias=bias, reference_window=window)
    events, _ = histories(LENGTHS, K * S, times=bias == "position_time")
    asks = asked(events.times, LENGTHS)
    ends = np.array([[3, 6, 9]], np.int32)
    history = known_window(events, np.array(LENGTHS, np.int32), asks)
    run = jax.jit(reference_pass, static_argnums=0)
    memory = run(method, params, events, history.lengths, ends, asks)

    @jax.jit
    def all_rows(params):
        x, layout, _ = reference_inputs(method.memory, params, history, ends)
        return method.network.run(params, x, layout)[0][:, layout.num_slots :]

    items = all_rows(params)

    p, queries = slow.float64(params), np.asarray(tokens_of(method, params, "queries", 1)[0])
    for user, length in enumerate(LENGTHS):
        for h, end in enumerate(ends[0]):
            seen = slow_events(params, events, asks, user, 0, min(end, length), wrap=S)
            expected = slow.reference_memory(p, method.config, queries, seen, end)
            got = memory[user, h]
            np.testing.assert_allclose(got, left(method, params, expected), **CLOSE)
        # Events never see a query: their outputs are those of a pass without queries.
        seen = slow_events(params, events, asks, user, 0, length, wrap=S)
        causal = slow.items_see(method.config, length)
        expected = slow.backbone(p, method.config, seen, causal)
        np.testing.assert_allclose(items[user, :length], expected, **CLOSE)


@pytest.mark.parametrize("plain", [False, True])
@backbones
def test_update_pass_is_memory_segment_and_queries_written_out(backbone, bias, plain):
    """Append with 0, 1 and 2 groups in use; R = 2, so that reads are longer than segments."""
    options = dict(memory="append", recent=2, plain_memory=plain)
    method, params = make(backbone, bias=bias, **options)
    lengths = np.array([3, 2, 4, 4], np.int32)
    events, valid = histories(lengths, S + 1, times=bias == "position_time")
    asks = asked(events.times, lengths)
    state = random_state(method, [0, 1, 2, 1])
    run = jax.jit(update_pass, static_argnums=0)
    readout, at_queries = run(method, params, state, events, lengths, asks)
    memory = to_memory(method, params, at_queries, state)
    request = None if asks is None else np.take_along_axis(asks, lengths[:, None] - 1, 1)[:, 0]
    without_queries = jax.jit(method.read_all)(params, state, events, valid, request)
    for user, length in enumerate(lengths):
        together = (parts(r) for r in (readout, without_queries))
        for a, b in zip(*together, strict=True):
            np.testing.assert_allclose(a[user, :length], b[user, :length], **ROUNDING)
    items = readout.vectors

    p, queries = slow.float64(params), np.asarray(tokens_of(method, params, "queries", 1)[0])
    entered = np.asarray(tokens_of(method, params, "to_tokens", state.memory), np.float64)
    for user, length in enumerate(lengths):
        oldest = (2 - state.groups[user]) * SLOTS
        used = entered[user, oldest:]
        seen = slow_events(params, events, asks, user, 0, length)
        outputs, _ = slow.update_pass(p, method.config, used, [], seen)
        if not plain:
            outputs = outputs + slow.recalled(p, method.config, state.memory[user, oldest:])
        np.testing.assert_allclose(items[user, :length], outputs, **CLOSE)
        _, at_queries = slow.update_pass(p, method.config, used, queries, seen[:S])
        if not plain:
            keep = (np.exp(p["memory"]["log_keep"]) * state.segments[user])[:, None]
            at_queries = at_queries + keep * state.memory[user, -SLOTS:]
        np.testing.assert_allclose(memory[user], left(method, params, at_queries), **CLOSE)


@backbones
def test_single_pass_is_a_causal_pass(backbone, bias):
    method, params = make(backbone, name="full", bias=bias)
    events, valid = histories(LENGTHS, K * S, times=bias == "position_time")
    request = None if events.times is None else np.max(events.times, axis=1) + np.int32(50)
    empty = method.init_state(params, 3)
    out = jax.jit(method.read_all)(params, empty, events, valid, request).vectors
    asks = asked(events.times, LENGTHS)
    for user, length in enumerate(LENGTHS):
        seen = slow_events(params, events, asks, user, 0, length, wrap=K * S)
        causal = np.tril(np.ones((length, length), bool))
        expected = slow.backbone(slow.float64(params), method.config, seen, causal)
        np.testing.assert_allclose(out[user, :length], expected, **CLOSE)


# --- states ---


def segment_inputs(events, valid):
    """Stacks segments for a scan: [K, B, S]."""
    return jax.tree.map(lambda a: np.stack(np.split(a, a.shape[1] // S, axis=1)), (events, valid))


@pytest.mark.smoke
@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_scan_equals_a_python_loop_over_updates(memory):
    method, params = make("hstu", bias="position_time", memory=memory)
    events, valid = histories([9, 6, 0], K * S, times=True)
    update = jax.jit(method.update)
    state = method.init_state(params, 3)
    for k in range(K):
        state = update(
            params, state, columns(events, k * S, k * S + S), valid[:, k * S : k * S + S]
        )
    scanned, _ = jax.jit(
        lambda params, state, inputs: jax.lax.scan(
            lambda s, x: (method.update(params, s, *x), None), state, inputs
        )
    )(params, method.init_state(params, 3), segment_inputs(events, valid))
    np.testing.assert_allclose(scanned.memory, state.memory, **ROUNDING)
    jax.tree.map(np.testing.assert_array_equal, scanned[1:], state[1:])
    np.testing.assert_array_equal(state.groups, [1, 1, 0] if memory == "overwrite" else [2, 2, 0])
    np.testing.assert_array_equal(state.segments, [3, 2, 0])


@backbones
def test_first_memory_is_the_same_in_both_passes(backbone, bias):
    """m_0^ref == m_0^upd: neither pass has a memory before the first segment."""
    method, params = make(backbone, bias=bias)
    events, valid = histories([3, 3], S, times=bias == "position_time")
    update = jax.jit(method.update)(params, method.init_state(params, 2), events, valid)
    reference = jax.jit(method.compress)(params, events, valid)
    np.testing.assert_allclose(update.memory, reference.memory, **ROUNDING)
    jax.tree.map(np.testing.assert_array_equal, update[1:], reference[1:])


@backbones
def test_first_memory_of_training_is_the_same_in_both_passes(backbone, bias):
    method, params = make(backbone, bias=bias, recent=2)
    lengths = np.array([4, 3], np.int32)
    events, _ = histories(lengths, S + 1, times=bias == "position_time")
    asks = asked(events.times, lengths)
    ends = np.array([[S]], np.int32)
    segment = columns(events, 0, S)
    inside = None if asks is None else asks[:, :S]
    reference = jax.jit(reference_pass, static_argnums=0)(
        method, params, segment, np.minimum(lengths, S), ends, inside
    )
    state = method.init_state(params, 2)
    run = jax.jit(update_pass, static_argnums=0)
    _, at_queries = run(method, params, state, events, lengths, asks)
    update = to_memory(method, params, at_queries, state)
    np.testing.assert_allclose(update, reference[:, 0], **ROUNDING)


@backbones
def test_compressing_k_segments_gives_the_kth_reference_memory(backbone, bias):
    method, params = make(backbone, bias=bias)
    events, _ = histories([9, 9], K * S, times=bias == "position_time")
    lengths, ends = np.array([9, 9], np.int32), np.array([[3, 6, 9]], np.int32)
    asks = asked(events.times, lengths)
    run = jax.jit(reference_pass, static_argnums=0)
    memory = run(method, params, events, lengths, ends, asks)
    compress = jax.jit(method.compress)
    for k in range(K):
        valid = np.broadcast_to(np.arange(9) < (k + 1) * S, (2, 9))
        next_time = None if asks is None else asks[:, (k + 1) * S - 1]
        state = compress(params, events, valid, next_time)
        np.testing.assert_allclose(state.memory, memory[:, k], **ROUNDING)
    empty = compress(params, events, np.zeros((2, 9), bool))
    np.testing.assert_array_equal(empty.groups, [0, 0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(empty))


@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_a_segment_without_events_keeps_the_state_bit_for_bit(memory):
    method, params = make(memory=memory)
    events, valid = histories([3, 0, 0, 1], S)
    groups = [1, 1, 0, 0]
    state = random_state(method, groups)
    new = jax.jit(method.update)(params, state, events, valid)
    for before, after in zip(*map(jax.tree.leaves, (state, new)), strict=True):
        np.testing.assert_array_equal(before[1:3], after[1:3])
    for name in ("memory", "exact"):
        for before, after in zip(
            *(jax.tree.leaves(getattr(s, name)) for s in (state, new)), strict=True
        ):
            assert np.any(np.asarray(after)[0] != before[0])
    assert new.exact.items[3].any()
    assert new.groups[3] == 1


def test_append_keeps_the_newest_groups_on_the_right():
    method, params = make(memory="append", max_groups=2)
    events, valid = histories([9], K * S)
    update = jax.jit(method.update)
    state, made = method.init_state(params, 1), []
    for k in range(K):
        state = update(params, state, columns(events, k * S, k * S + S), valid[:, :S])
        made.append(np.asarray(state.memory)[:, -SLOTS:])
        held = made[-2:] if k else [np.zeros_like(made[0]), made[0]]
        np.testing.assert_array_equal(state.memory, np.concatenate(held, axis=1))
        assert state.groups[0] == min(k + 1, 2)


def test_overwrite_is_append_with_room_for_one_group():
    overwrite, params = make(max_groups=1)
    append, _ = make(memory="append", max_groups=1)
    events, valid = histories([9, 5], K * S)
    inputs = segment_inputs(events, valid)
    states = []
    for method in (overwrite, append):
        state = method.init_state(params, 2)
        for k in range(K):
            state = jax.jit(method.update)(
                params, state, *jax.tree.map(lambda a, k=k: a[k], inputs)
            )
        states.append(state)
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(("memory", "groups"), [("overwrite", 1), ("append", 2)])
def test_memory_is_exactly_c_by_d_floats_per_group(memory, groups):
    """Beside three integers for each entry of the exact memory, and bookkeeping."""
    method, params = make(memory=memory)
    state = method.init_state(params, 5)
    assert isinstance(state, State) and state.memory.dtype == jnp.float32
    assert state.memory.nbytes == 5 * groups * SLOTS * DIM * 4
    assert {(a.shape, str(a.dtype)) for a in state.exact} == {((5, ENTRIES), "int32")}
    assert state.groups.nbytes + state.segments.nbytes == 5 * 8  # bookkeeping
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state))
    assert_update_keeps_shapes(method, params, state)


def test_a_group_enters_by_its_age_whatever_the_capacity():
    """The newest group gives the same tokens in a state of one group and of two."""
    method, params = make(memory="append")
    memory = random_state(method, [2]).memory
    both = tokens_of(method, params, "to_tokens", memory)
    newest = tokens_of(method, params, "to_tokens", memory[:, SLOTS:])
    np.testing.assert_allclose(both[:, SLOTS:], newest, atol=1e-6)
    again = tokens_of(method, params, "to_tokens", np.tile(memory[:, SLOTS:], (1, 2, 1)))
    assert not np.allclose(again[:, :SLOTS], newest)  # the same memory, one group older


def test_more_events_than_are_read_at_once_are_refused():
    """A gather would clamp the positions without a word."""
    for name in ("rec2pm", "recent"):
        method, params = make(name=name)
        events, valid = histories([4], S + 1)
        with pytest.raises(ValueError, match="4 events to read at once.*at most 3"):
            method.read_all(params, method.init_state(params, 1), events, valid)


def test_one_time_memory_is_of_whole_segments():
    method, params = make()
    with pytest.raises(ValueError, match="whole segments of 3 events, got 4"):
        method.compress(params, *histories([4], 4))
