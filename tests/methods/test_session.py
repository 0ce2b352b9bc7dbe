"""The incremental read against the whole one, after every event."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.sessions import check_room
from rec2pm_jax.methods.windows import UNKNOWN_TIME
from tests.helpers.methods import (
    assert_same_readout,
    columns,
    histories,
    make,
    parts,
    random_state,
)

S, R = 3, 2
CLOSE = dict(rtol=1e-5, atol=1e-5)
METHODS = {
    "full": dict(name="full"),
    "recent": dict(name="recent"),
    "rec2pm_o": {},
    "rec2pm_a": dict(memory="append"),
    "tok_serial_o": dict(name="tok_serial"),
    "tok_serial_a": dict(name="tok_serial", memory="append"),
    "kv_mask_o": dict(name="kv_mask"),
    "kv_mask_a": dict(name="kv_mask", memory="append"),
}
BACKBONES = [("sasrec", "none"), ("hstu", "none"), ("hstu", "position"), ("hstu", "position_time")]


@functools.cache
def compiled(method):
    names = ("update", "read", "open_session", "step_session", "read_session")
    return [jax.jit(getattr(method, name)) for name in names]


def requests(events, n):
    """Some time after event n - 1 of each user, other than any event's."""
    return None if events.times is None else events.times[:, n - 1] + 7 * np.int32(n)


def cases():
    """All methods, backbones and biases; those that differ least from another one are slow tests."""
    for name in METHODS:
        for backbone, bias in BACKBONES:
            alike = name.startswith("tok_serial") or bias == "position" or name == "recent"
            alike = alike or (backbone, bias) == ("hstu", "none") or name == "rec2pm_o"
            marks = pytest.mark.slow if alike else ()
            yield pytest.param(name, backbone, bias, marks=marks)


@pytest.mark.parametrize(("name", "backbone", "bias"), [*cases()])
def test_each_event_through_segments(name, backbone, bias):
    """A session is opened again whenever its first segment is folded; `full` slides at its end."""
    method, params = make(backbone, bias=bias, recent=R, **METHODS[name])
    update, read, open_session, step, again = compiled(method)
    events, valid = histories([5 * S + R] * 2, 5 * S + R, times=bias == "position_time")
    state, session, turnovers = method.init_state(params, 2), None, 0
    for n in range(1, 4 * S + R + 1):
        plan, before = method.plan(n), method.plan(n - 1)
        start, window = (
            int(plan.start),
            slice(int(plan.start), int(plan.start) + method.read_length),
        )
        raw = columns(events, window.start, window.stop)
        seen = np.broadcast_to(
            np.arange(window.start, window.start + raw.ids.shape[1]) < n, raw.ids.shape
        )
        request = requests(events, n)
        if plan.updates > before.updates:
            segment = columns(events, int(before.start), start)
            next_time = None if request is None else events.times[:, start]
            state = update(params, state, segment, np.ones((2, S), bool), next_time)
        if session is None or plan.start != before.start:
            session, found = open_session(params, state, raw, seen, request)
            turnovers += 1
        else:
            check_room(session)
            session, found = step(params, session, columns(events, n - 1, n), request)
        expected = read(params, state, raw, seen, request)
        assert_same_readout(found, expected, **CLOSE)
        later = None if request is None else request + 10**5
        other = read(params, state, raw, seen, later)
        assert_same_readout(again(params, session, later), other, **CLOSE)
        if bias == "position_time":
            for a, b in zip(parts(other), parts(expected), strict=True):
                assert not np.allclose(a, b, atol=1e-3)
            unknown = read(params, state, raw, seen, np.full(2, UNKNOWN_TIME, np.int32))
            assert_same_readout(again(params, session), unknown, **CLOSE)
    assert turnovers > 1


@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(
    ("name", "backbone", "bias"),
    [("rec2pm_a", "hstu", "position_time"), ("kv_mask_a", "sasrec", "none")],
)
def test_users_at_different_places(name, backbone, bias, data):
    """Sessions opened at any lengths (also without events), then some steps for all users at once."""
    method, params = make(backbone, bias=bias, recent=R, **METHODS[name])
    _, read, open_session, step, _ = compiled(method)
    lengths = np.array(data.draw(st.lists(st.integers(0, 3), min_size=3, max_size=3)))
    groups = data.draw(st.lists(st.integers(0, 2), min_size=3, max_size=3))
    events, valid = histories([4] * 3, 4, times=bias == "position_time", seed=int(lengths.sum()))
    state = random_state(method, groups)
    session, _ = open_session(params, state, events, np.arange(4) < lengths[:, None])
    for _ in range(4 - int(lengths.max())):
        event = jax.tree.map(lambda a: np.take_along_axis(a, lengths[:, None], 1), events)  # noqa: B023
        lengths = lengths + 1
        asked = (
            None if events.times is None else (event.times[:, 0] + 100 * lengths).astype(np.int32)
        )
        session, found = step(params, session, event, asked)
        expected = read(params, state, events, np.arange(4) < lengths[:, None], asked)
        assert_same_readout(found, expected, **CLOSE)


@pytest.mark.parametrize("bias", ["none", "position_time"])
def test_a_full_session_is_refused_and_never_silently_wrong(bias):
    method, params = make("hstu", bias=bias, recent=R)
    _, _, open_session, step, again = compiled(method)
    events, valid = histories([4, 3], 4, times=True)
    session, found = open_session(params, random_state(method, [1, 1]), events, valid)
    assert np.isfinite(method.score(params, found)[:, 1:]).all()
    with pytest.raises(UserError, match=r"rows \[0\] are full \(4 events\)"):
        check_room(session)
    session, found = step(params, session, columns(events, 1, 2))
    for each in (found, again(params, session)):
        scores = method.score(params, each)[:, 1:]
        assert np.isnan(scores[0]).all() and np.isfinite(scores[1]).all()
