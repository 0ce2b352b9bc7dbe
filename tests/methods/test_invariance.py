"""A user's outputs and losses depend neither on batch mates nor on values in the padding."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rec2pm_jax.typing import Events
from tests.helpers.methods import (
    ITEMS,
    assert_same_readout,
    batch_of,
    histories,
    make,
    parts,
    random_state,
    rows,
)

METHODS = {
    "full": dict(name="full"),
    "recent": dict(name="recent"),
    "overwrite": {},
    "append": dict(memory="append"),
    "tok_serial": dict(name="tok_serial", memory="append"),
    "kv_mask": dict(name="kv_mask", memory="append"),
}
CLOSE = dict(rtol=1e-5, atol=1e-5)


def random_states(method, params, count):
    if not method.stores_memory:
        return method.init_state(params, count)
    return random_state(method, np.arange(count) % (method.memory.capacity + 1))


def with_garbage(events, valid, extra):
    """`extra` more columns of padding, and random values in all of the padding."""
    rng = np.random.default_rng(9)
    valid = np.pad(valid, ((0, 0), (0, extra)))

    def fill(a, high):
        a = np.pad(a, ((0, 0), (0, extra)))
        return np.where(valid, a, rng.integers(1, high, a.shape)).astype(np.int32)

    return Events(fill(events.ids, ITEMS + 1), fill(events.times, 10**6), None), valid


@pytest.mark.parametrize(
    ("name", "backbone", "bias"),
    [
        ("full", "hstu", "position_time"),
        ("overwrite", "sasrec", "none"),
        ("append", "hstu", "position_time"),
        ("kv_mask", "sasrec", "none"),
        ("kv_mask", "hstu", "position_time"),
    ],
)
def test_reads_and_updates(name, backbone, bias):
    method, params = make(backbone, bias=bias, recent=2, **METHODS[name])
    # One column less than the read window, so that padding can be added.
    events, valid = histories([2, 3, 1], 3, times=True)
    state = random_states(method, params, 3)
    request = events.times.max(axis=1) + np.int32(7)
    read, read_all, update = map(jax.jit, (method.read, method.read_all, method.update))

    out, every = (
        read(params, state, events, valid, request),
        read_all(params, state, events, valid, request),
    )
    assert out.vectors.dtype == np.float32 and out.vectors.shape == (3, method.config.model.dim)
    assert np.all(parts(out)[1].any(axis=1))  # every user has own items
    new = update(params, state, events, valid)
    padded = with_garbage(events, valid, 1)
    assert_same_readout(read(params, state, *padded, request), out, **CLOSE)
    padded_every = read_all(params, state, *padded, request)
    padded_same_width = with_garbage(events, valid, 0)
    assert_same_states(update(params, state, *padded_same_width), new)
    out_parts, every_parts, padded_parts = map(parts, (out, every, padded_every))
    for user in range(3):
        one = slice(user, user + 1)
        alone = [rows(x, one) for x in (state, events, valid, request)]
        assert_same_readout(read(params, *alone), rows(out, one), **CLOSE)
        length = valid[user].sum()
        for a, b, c in zip(every_parts, out_parts, padded_parts, strict=True):
            np.testing.assert_allclose(a[user, length - 1], b[user], **CLOSE)
            np.testing.assert_allclose(c[user, :length], a[user, :length], **CLOSE)
        assert_same_states(update(params, *alone[:3]), rows(new, one))


def assert_same_states(got, expected):
    """Equal up to rounding in the preference memory, and bit for bit in all else."""
    np.testing.assert_allclose(got.memory, expected.memory, **CLOSE)
    jax.tree.map(np.testing.assert_array_equal, got[1:], expected[1:])


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("full", "position"),
        ("recent", "position_time"),
        ("append", "position"),
        ("tok_serial", "position"),
        ("kv_mask", "position_time"),
        ("overwrite", "position"),
    ],
)
def test_losses_are_sums_over_users(name, bias):
    """Batch mates change no term, and sums and weights add up."""
    method, params = make("hstu", bias=bias, recent=2, **METHODS[name])
    loss = jax.jit(lambda p, batch: method.loss(p, batch, None))
    batch = batch_of([11, 7, 4], 11, times=bias == "position_time")
    together = loss(params, batch)
    alone = [loss(params, rows(batch, slice(u, u + 1))) for u in range(3)]
    assert set(together) <= set(method.loss_weights)
    for term, (total, weight) in together.items():
        np.testing.assert_allclose(total, sum(a[term][0] for a in alone), rtol=1e-5)
        assert weight == sum(a[term][1] for a in alone)


def test_event_types_change_the_output():
    method, params = make(model=(("event_types", 3),))
    events, valid = histories([3, 3], 3, types=3)
    read = jax.jit(method.read)
    state = random_state(method, [1, 1])
    out = read(params, state, events, valid)
    other = read(params, state, events._replace(types=events.types % 3 + 1), valid)
    assert not np.allclose(out.vectors, other.vectors, atol=1e-3)
