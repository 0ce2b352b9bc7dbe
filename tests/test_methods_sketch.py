"""The sketch: what is summed, where it goes, and who scores it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.config import Config, MethodConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.segments import UNLIMITED, slot_horizons
from rec2pm_jax.methods.sketch import item_parts, up_to, widen
from tests.methods_fixtures import DIM, ITEMS, columns, histories, make

S, PARTS = 3, 2
CLOSE = dict(rtol=0, atol=1e-5)


def slow_sum(table, ids):
    """Sum of an item's parts at unit scale, event by event: [P, D] of ids without padding."""
    total = np.zeros((PARTS, DIM))
    for item in ids:
        for part in range(PARTS):
            numbers = table[item, part * DIM : (part + 1) * DIM].astype(np.float64)
            total[part] += numbers / np.sqrt(np.mean(numbers**2))
    return total


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, ITEMS), min_size=1, max_size=8))
def test_parts_add_up_and_padding_adds_nothing(ids):
    _, params = make(sketch=PARTS)
    table = params["embedding"]["item_embedding"]
    assert table.shape == (ITEMS + 1, PARTS * DIM)
    got = item_parts(table, np.array(ids, np.int32), PARTS).sum(axis=0)
    np.testing.assert_allclose(got, slow_sum(table, [i for i in ids if i]), **CLOSE)


def test_an_update_notes_the_sum_of_its_segment_alone():
    """R = 2: reads hold one event more than the segment, and rows end in padding."""
    method, params = make(sketch=PARTS, recent=2)
    lengths = np.array([4, 3, 2], np.int32)
    events, _ = histories(lengths, S + 1)
    state = method.init_state(params, 3)
    plain = jax.random.normal(jax.random.key(0), (3, 2, DIM))
    noted = method._noted(params, plain, events, lengths)
    table, own = params["embedding"]["item_embedding"], params["memory"]["own_gain"]
    for user, length in enumerate(np.minimum(lengths, S)):
        total = slow_sum(table, events.ids[user, :length])
        expected = own[:, None] * plain[user] + total / np.sqrt(S)
        np.testing.assert_allclose(noted[user], expected, **CLOSE)
    # What training and serving leave in memory is made of that.
    _, at_queries = method._update_pass(params, state, events, lengths, None)
    at_queries = method._noted(params, at_queries, events, lengths)
    left = method._leave(params, at_queries, state)
    segment = columns(events, 0, S)
    served = method.update(params, state, segment, up_to(segment.ids, lengths) > 0)
    np.testing.assert_allclose(served.memory, left, **CLOSE)


def test_a_reference_memory_notes_the_mean_over_its_segments():
    method, params = make(sketch=PARTS)
    lengths = np.array([9, 6], np.int32)
    events, _ = histories(lengths, 9)
    ends = np.array([[3, 6, 9]], np.int32).repeat(2, axis=0)
    got = method._reference_sketch(params, events.ids, ends)
    table = params["embedding"]["item_embedding"]
    for user, length in enumerate(lengths):
        for group, end in enumerate(ends[user]):
            total = slow_sum(table, events.ids[user, : min(end, length)])
            np.testing.assert_allclose(got[user, group], total / np.sqrt(S) / (group + 1), **CLOSE)


@pytest.mark.parametrize("sketch", [1, 2])
def test_first_memory_is_the_same_in_both_passes(sketch):
    method, params = make(sketch=sketch)
    events, valid = histories([3, 3], S)
    update = jax.jit(method.update)(params, method.init_state(params, 2), events, valid)
    reference = jax.jit(method.compress)(params, events, valid)
    np.testing.assert_allclose(update.memory, reference.memory, **CLOSE)


def test_compressing_some_segments_is_their_reference_memory():
    """Users of different lengths in one pass, each as alone."""
    method, params = make(sketch=PARTS)
    events, valid = histories([9, 6], 9)
    together = jax.jit(method.compress)(params, events, valid).memory
    short = jax.jit(method.compress)(params, columns(events, 0, 6), valid[:, :6]).memory
    np.testing.assert_allclose(together[1], short[1], **CLOSE)
    assert np.abs(together[0] - short[0]).max() > 0.01


def test_further_parts_score_memory_alone():
    """A user without a memory is scored by what the backbone says, about the first part of items."""
    method, params = make(sketch=PARTS)
    events, valid = histories([3, 3], S)
    empty = method.init_state(params, 2)
    full = jax.jit(method.update)(params, empty, events, valid)
    read = jax.jit(method.read)
    without, with_memory = (read(params, state, events, valid) for state in (empty, full))
    assert without.shape == with_memory.shape == (2, PARTS * DIM)
    assert not np.any(without[:, DIM:]) and np.abs(with_memory[:, DIM:]).max() > 0.01


def test_full_scores_the_sum_of_what_it_reads():
    method, params = make(name="full", sketch=PARTS)
    events, valid = histories([9, 4], 9)
    state = method.init_state(params, 2)
    out = jax.jit(method.read)(params, state, events, valid)
    p = params["sketch"]
    for user, length in enumerate([9, 4]):
        total = slow_sum(params["embedding"]["item_embedding"], events.ids[user, :length])
        total -= total.mean(axis=1, keepdims=True)
        total /= total.std(axis=1, keepdims=True)
        recalled = p["recall_gain"] * (total.reshape(-1) @ p["recall"])
        np.testing.assert_allclose(out[user, DIM:], recalled[DIM:], rtol=0, atol=1e-4)


def test_widening_says_nothing_about_further_parts():
    np.testing.assert_array_equal(widen(np.ones((1, 2)), 4), [[1, 1, 0, 0]])


def test_slots_with_a_part_look_back_over_all():
    config = dataclasses.replace(Config(), method=MethodConfig(slots=4, sketch=2))
    assert slot_horizons(config)[:2] == (UNLIMITED, UNLIMITED)
    assert all(horizon < UNLIMITED for horizon in slot_horizons(config)[2:])


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (dict(name="kv_mask", sketch=1), "kv_mask"),
        (dict(sketch=5), "slots"),
        (dict(sketch=1, recall=False), "recall"),
        (dict(sketch=-1), "sketch"),
    ],
)
def test_what_cannot_have_a_sketch_is_refused(method, names):
    with pytest.raises(UserError, match=names):
        Config(method=MethodConfig(**method))
