"""The sketch: what is summed, where it goes, and who scores it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.sketch import item_parts, widen
from rec2pm_jax.methods.windows import cut_windows
from rec2pm_jax.typing import Events
from tests.helpers.methods import (
    DIM,
    ITEMS,
    batch_of,
    columns,
    histories,
    make,
    to_memory,
    update_pass,
)

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


def test_an_update_sums_the_items_of_its_segment():
    """R = 2: reads hold one event more than the segment, and rows end in padding."""
    method, params = make(sketch=PARTS, recent=2)
    lengths = np.array([4, 3, 2], np.int32)
    batch, window = batch_of(lengths, 11), method.config.data.window
    assert batch["ids"].shape[1] == window + 1
    cut = method.memory.sketch_windows(params, cut_windows(batch, method.config.data, None))
    sketches = cut.windows.sketch.reshape(3, -1, PARTS, DIM)
    np.testing.assert_array_equal(cut.history.sketch, sketches)
    table = params["embedding"]["item_embedding"]
    for user, length in enumerate(lengths):
        for segment in range(2):
            ids = batch["ids"][user, segment * S : min((segment + 1) * S, length)]
            expected = slow_sum(table, ids) / np.sqrt(S)
            np.testing.assert_allclose(sketches[user, segment], expected, **CLOSE)
    outputs = np.ones((3, 2, DIM), np.float32)
    got = method.memory.with_sketch(params, outputs, sketches[:, 0])
    expected = params["memory"]["own_gain"][:, None] + sketches[:, 0]
    np.testing.assert_allclose(got, expected, **CLOSE)
    # Training and serving make the same memory.
    events = Events(batch["ids"][:, : S + 1])
    state, first = method.init_state(params, 3), sketches[:, 0]
    _, at_queries = update_pass(method, params, state, events, lengths, None, first)
    trained = to_memory(method, params, at_queries, state)
    segment = columns(events, 0, S)
    served = method.update(params, state, segment, segment.ids > 0)
    np.testing.assert_allclose(served.memory, trained, **CLOSE)


def fresh(slots, sketch, segment=5):
    """(method, params) as training starts: D = 128, so that items are nearly orthogonal."""
    config = Config(
        data=DataConfig(segment=segment, segments=4),
        model=ModelConfig(layers=1, heads=2, dim=128, dropout=0.0),
        method=MethodConfig(slots=slots, sketch=sketch),
    )
    method = make_method(config, 60)
    return method, jax.jit(method.init)(jax.random.key(0))


def test_a_slot_starts_as_what_it_sums_scored_against_that_part():
    """C = 3 > P = 2, without the outputs of the backbone."""
    method, params = fresh(slots=3, sketch=2)
    params["memory"]["own_gain"] = jnp.zeros(2)
    ids = np.arange(1, 6, dtype=np.int32)[None]
    state = jax.jit(method.update)(params, method.init_state(params, 1), Events(ids), ids > 0)
    recalled = method.memory.apply(params, "recall_items", state.memory)
    np.testing.assert_allclose(recalled[0], state.memory[0, :2].reshape(-1), **CLOSE)
    table = params["embedding"]["item_embedding"].reshape(-1, 2, 128)
    for part in range(2):
        scores = table[:, part] @ state.memory[0, part]
        assert scores[1:6].min() > scores[6:].max()


def test_iterated_sketches_stay_near_the_mean_over_all_segments():
    """Over 12 updates, against one pass; each update normalises again, so only near."""
    method, params = fresh(slots=2, sketch=2)
    params["memory"]["own_gain"] = jnp.zeros(2)
    ids = np.random.default_rng(0).integers(1, 61, (4, 60)).astype(np.int32)
    state = method.init_state(params, 4)
    update = jax.jit(method.update)
    for segment in np.split(ids, 12, axis=1):
        state = update(params, state, Events(segment), segment > 0)
    compress = jax.jit(method.compress)
    whole = compress(params, Events(ids), ids > 0).memory
    cosine = np.sum(state.memory * whole, axis=-1) / 128
    assert cosine.min() > 0.85
    last = compress(params, Events(ids[:, -5:]), ids[:, -5:] > 0).memory
    assert np.max(np.sum(state.memory * last, axis=-1) / 128) < 0.7  # not the newest segment alone


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
    """A user without a memory is scored by the backbone, which predicts the first part of items."""
    method, params = make(sketch=PARTS)
    events, valid = histories([3, 3], S)
    empty = method.init_state(params, 2)
    full = jax.jit(method.update)(params, empty, events, valid)
    read = jax.jit(method.read)
    without, with_memory = (read(params, s, events, valid).vectors for s in (empty, full))
    assert without.shape == with_memory.shape == (2, PARTS * DIM)
    assert not np.any(without[:, DIM:]) and np.abs(with_memory[:, DIM:]).max() > 0.01


def test_full_scores_the_sum_of_what_it_reads():
    method, params = make(name="full", sketch=PARTS)
    events, valid = histories([9, 4], 9)
    state = method.init_state(params, 2)
    out = jax.jit(method.read)(params, state, events, valid).vectors
    p = params["sketch"]
    for user, length in enumerate([9, 4]):
        total = slow_sum(params["embedding"]["item_embedding"], events.ids[user, :length])
        total -= total.mean(axis=1, keepdims=True)
        total /= total.std(axis=1, keepdims=True)
        recalled = p["recall_gain"] * (total.reshape(-1) @ p["recall"])
        np.testing.assert_allclose(out[user, DIM:], recalled[DIM:], rtol=0, atol=1e-4)


def test_widening_leaves_further_parts_zero():
    np.testing.assert_array_equal(widen(np.ones((1, 2)), 4), [[1, 1, 0, 0]])


def test_kv_mask_ignores_a_sketch():
    """A method ignores fields that it does not read, so that one preset serves a comparison."""
    method = make_method(Config(method=MethodConfig(name="kv_mask", sketch=4)), ITEMS)
    assert method.item_dim == ModelConfig().dim


@pytest.mark.parametrize(
    ("method", "names"),
    [
        (dict(sketch=5), "slots"),
        (dict(sketch=1, recall=False), "recall"),
        (dict(name="tok_serial", sketch=1, running_mean=False), "running_mean"),
        (dict(sketch=-1), "sketch"),
    ],
)
def test_what_cannot_have_a_sketch_is_refused(method, names):
    with pytest.raises(UserError, match=names):
        make_method(Config(method=MethodConfig(**method)), ITEMS)
