"""The masked training pass against segment-by-segment serving, and against a model written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods.kv_mask import masked_pass
from rec2pm_jax.typing import Events
from tests.helpers import numpy_reference as slow
from tests.helpers.methods import (
    DIM,
    SLOTS,
    assert_update_keeps_shapes,
    batch_of,
    columns,
    histories,
    known_window,
    make,
    random_state,
    rows,
)

S, K, LAYERS = 3, 3, 2
BACKBONES = [("sasrec", "none"), ("hstu", "none"), ("hstu", "position"), ("hstu", "position_time")]


def kv_mask(backbone="sasrec", bias="none", memory="overwrite", recent=1, **options):
    return make(backbone, name="kv_mask", bias=bias, memory=memory, recent=recent, **options)


def windows_of(events, count, width):
    """Windows of `width` events, one every S: fields [B * count, width], and lengths [B, count]."""

    def cut(a):
        parts = [a[:, h * S : h * S + width] for h in range(count)]
        return np.stack(parts, axis=1).reshape(-1, width)

    cut_events = jax.tree.map(cut, events)
    return cut_events, (cut_events.ids > 0).sum(axis=1, dtype=np.int32).reshape(-1, count)


def run_masked(method, params, events, lengths, row_times):
    """Outputs at the events [B * count, width]; lengths [B, count]."""
    windows = known_window(events, lengths.reshape(-1), row_times)
    users = np.arange(len(lengths), dtype=np.int32)
    return masked_pass(method.memory, params, windows, users, None)


def next_times(events):
    """Time of the event after each: 50 s later after the last one."""
    if events.times is None:
        return None
    following = np.roll(events.times, -1, axis=1)
    following[:, -1] = 0
    return np.where(following > 0, following, events.times + 50).astype(np.int32)


@pytest.mark.parametrize(("backbone", "bias"), BACKBONES)
@pytest.mark.parametrize(("memory", "recent"), [("overwrite", 1), ("append", 2)])
def test_masked_training_pass_is_cached_serving(backbone, bias, memory, recent):
    """Every event of K + 3 segments, for users of several lengths; capacity 2, so groups fall off."""
    method, params = kv_mask(backbone, bias, memory, recent)
    count, width = K + 3, method.read_length
    total = (count - 1) * S + width
    events, _ = histories([total, total - 4, S + 1], total, times=bias == "position_time")
    asks = next_times(events)
    cut_events, lengths = windows_of(events, count, width)
    cut_asks = None if asks is None else windows_of(Events(asks), count, width)[0].ids
    trained = jax.jit(run_masked, static_argnums=0)(method, params, cut_events, lengths, cut_asks)
    trained = np.asarray(trained).reshape(3, count, width, DIM)

    update, read_all = jax.jit(method.update), jax.jit(method.read_all)
    state = method.init_state(params, 3)
    for h in range(count):
        window = columns(events, h * S, h * S + width)
        length = lengths[:, h]
        last = np.maximum(h * S + length - 1, 0)[:, None]
        asked = None if asks is None else np.take_along_axis(asks, last, axis=1)[:, 0]
        served = read_all(params, state, window, window.ids > 0, asked).vectors
        for user in range(3):
            got, expected = served[user, : length[user]], trained[user, h, : length[user]]
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        segment = columns(events, h * S, h * S + S)
        end = np.maximum(h * S + np.minimum(length, S) - 1, 0)[:, None]
        asked = None if asks is None else np.take_along_axis(asks, end, axis=1)[:, 0]
        state = update(params, state, segment, segment.ids > 0, asked)
    capacity = 1 if memory == "overwrite" else 2
    np.testing.assert_array_equal(state.groups, [capacity, capacity, min(2, capacity)])


@pytest.mark.parametrize(("backbone", "bias"), [("sasrec", "none"), ("hstu", "position_time")])
@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_masked_pass_is_the_model_written_out(backbone, bias, memory):
    """[S_0; Q; S_1; Q; S_2; Q; S_3; Q] of one user in one float64 pass with one bool matrix."""
    method, params = kv_mask(backbone, bias, memory)
    count = 4
    events, _ = histories([count * S], count * S, times=bias == "position_time")
    asks = next_times(events)
    cut_events, lengths = windows_of(events, count, S)
    cut_asks = None if asks is None else windows_of(Events(asks), count, S)[0].ids
    got = jax.jit(run_masked, static_argnums=0)(method, params, cut_events, lengths, cut_asks)

    p = slow.float64(params)
    tokens, segment_of = [], []
    for h in range(count):
        part = slice(h * S, h * S + S)
        times = () if asks is None else (events.times[0, part], asks[0, part])
        seen = slow.event_tokens(p, events.ids[0, part], *times, wrap=S)
        queries = [
            slow.Token(q, "query", c, S, 0, seen[-1].time)
            for c, q in enumerate(p["memory"]["query_embedding"])
        ]
        tokens += [*seen, *queries]
        segment_of += [h] * (S + SLOTS)
    sees = np.zeros((len(tokens), len(tokens)), bool)
    groups = 1 if memory == "overwrite" else 2
    for i, row in enumerate(tokens):
        for j, key in enumerate(tokens):
            age = segment_of[i] - segment_of[j]
            if key.kind == "query":
                sees[i, j] = 1 <= age <= groups or (age == 0 and row.kind == "query")
            else:
                sees[i, j] = age == 0 and (row.kind == "query" or j <= i)
    expected = slow.backbone(p, method.config, tokens, sees)
    at_events = [i for i, token in enumerate(tokens) if token.kind == "item"]
    np.testing.assert_allclose(
        np.asarray(got).reshape(-1, DIM), expected[at_events], rtol=2e-4, atol=2e-4
    )


def events_before(batch, start, length):
    """`length` events of a batch from `start` on, and the time of the event after the last one."""
    ids, times = batch["ids"][:, start : start + length], batch.get("times")
    if times is None:
        return Events(ids), None
    end = start + np.maximum((ids > 0).sum(axis=1), 1)
    asked = np.take_along_axis(times, end[:, None], axis=1)[:, 0]
    return Events(ids, times[:, start : start + length]), asked


@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_loss_is_the_cross_entropy_of_serving(memory):
    bias = "position" if memory == "overwrite" else "position_time"
    method, params = kv_mask("hstu", bias, memory, recent=2)
    width = method.config.data.window + 1
    batch = batch_of([width, 8, 3], width, times=method.config.uses_times)
    total, weight = jax.jit(lambda p, b: method.loss(p, b, None))(params, batch)["ar"]
    update, read_all = jax.jit(method.update), jax.jit(method.read_all)
    state, expected, count = method.init_state(params, 3), 0.0, 0
    for h in range(K):
        ids = batch["ids"][:, h * S : h * S + method.read_length + 1]
        inputs, targets = ids[:, :-1], ids[:, 1:]
        window, asked = events_before(batch, h * S, inputs.shape[1])
        readout = read_all(params, state, window, inputs > 0, asked)
        log_p = jax.nn.log_softmax(method.score(params, readout), axis=-1)
        taken = np.take_along_axis(np.asarray(log_p), targets[..., None], axis=-1)[..., 0]
        expected, count = expected - taken[targets > 0].sum(), count + (targets > 0).sum()
        segment, asked = events_before(batch, h * S, S)
        state = update(params, state, segment, segment.ids > 0, asked)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert float(weight) == count


@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_a_segment_without_events_keeps_the_state_bit_for_bit(memory):
    method, params = kv_mask(memory=memory)
    events, valid = histories([3, 0, 0, 1], S)
    state = random_state(method, [1, 1, 0, 0])
    new = jax.jit(method.update)(params, state, events, valid)
    for before, after in zip(*map(jax.tree.leaves, (state, new)), strict=True):
        np.testing.assert_array_equal(before[1:3], after[1:3])
    assert np.any(np.asarray(new.memory)[0] != state.memory[0])
    assert new.groups[3] == 1


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize(("memory", "groups"), [("overwrite", 1), ("append", 2)])
def test_memory_is_the_keys_and_values_of_the_slots(memory, groups, dtype, size):
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes dtypes inside
        method, params = kv_mask(memory=memory, model=(("dtype", dtype),))
        state = method.init_state(params, 5)
        assert state.memory.nbytes == 5 * groups * 2 * LAYERS * SLOTS * DIM * size
        assert state.groups.nbytes == 5 * 4
        assert_update_keeps_shapes(method, params, state)


def test_memory_matters_in_every_layer_and_only_groups_in_use():
    method, params = kv_mask(memory="append")
    events, valid = histories([3], S)
    state = random_state(method, [1])
    read = jax.jit(method.read)
    out = read(params, state, events, valid)
    per_layer = 2 * DIM
    for layer in range(LAYERS):
        changed = state.memory.copy()
        changed[:, SLOTS:, layer * per_layer : (layer + 1) * per_layer] += 1
        other = read(params, state._replace(memory=changed), events, valid)
        assert np.abs(other.vectors - out.vectors).max() > 1e-3
    unused = state.memory.copy()
    unused[:, :SLOTS] = 99
    other = read(params, state._replace(memory=unused), events, valid)
    jax.tree.map(np.testing.assert_array_equal, other, out)


@pytest.mark.parametrize(
    ("layers", "memory", "segments"),
    [(2, "overwrite", [1, 2]), (3, "overwrite", [0, 1, 2]), (2, "append", [0, 1, 2])],
)
def test_overwritten_memory_reaches_back_layers_minus_one_segments(layers, memory, segments):
    """Which segments' items get gradients from the last one. A key holds what lower layers saw."""
    method, params = kv_mask(memory=memory, model=(("layers", layers),))
    ids = np.arange(1, 10, dtype=np.int32)[None]

    def last_segment(params):
        windows, lengths = windows_of(Events(ids), K, S)
        outputs = run_masked(method, params, windows, lengths, None)
        return jnp.sum(outputs[2] ** 2 * jnp.arange(1.0, DIM + 1))

    gradient = jax.jit(jax.grad(last_segment))(params)
    reached = np.any(gradient["embedding"]["item_embedding"][1:10], axis=1)
    np.testing.assert_array_equal(reached, np.repeat(np.isin(range(K), segments), S))
    assert np.all(gradient["memory"]["query_embedding"])


@pytest.mark.smoke
def test_scan_equals_a_python_loop():
    method, params = kv_mask("hstu", "position", "append")
    events, valid = histories([9, 6, 0], K * S)
    parts = jax.tree.map(lambda a: np.stack(np.split(a, K, axis=1)), (events, valid))
    update, looped = jax.jit(method.update), method.init_state(params, 3)
    for k in range(K):
        looped = update(params, looped, *rows(parts, k))

    def scan(params, state):
        return jax.lax.scan(lambda s, x: (method.update(params, s, *x), None), state, parts)[0]

    scanned = jax.jit(scan)(params, method.init_state(params, 3))
    np.testing.assert_allclose(scanned.memory, looped.memory, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(scanned.groups, [2, 2, 0])
    jax.tree.map(np.testing.assert_array_equal, scanned[1:], looped[1:])
