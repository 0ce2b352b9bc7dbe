"""Rows of training that do not know their query time."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rec2pm_jax.methods.windows import UNKNOWN_SHARE, cut_windows, training_events
from rec2pm_jax.typing import Events
from tests.helpers.methods import batch_of, make

S = 3
KEY = jax.random.key(3)


def test_without_a_key_all_times_are_known():
    batch = batch_of([10, 5], 10, times=True)
    window, *_ = training_events(batch, None)
    assert np.all(window.known)
    np.testing.assert_array_equal(window.row_times, batch["times"][:, 1:])
    assert training_events(batch_of([10], 10), KEY)[0].known is None


def test_one_row_in_sixteen_asks_at_its_own_time():
    batch = batch_of([50] * 400, 50, times=True)
    window, *_ = training_events(batch, KEY)
    known = np.asarray(window.known)
    assert UNKNOWN_SHARE == 1 / 16
    assert abs(np.mean(~known) - 1 / 16) < 5 * (1 / 16 * 15 / 16 / known.size) ** 0.5
    times = batch["times"]
    np.testing.assert_array_equal(window.row_times, np.where(known, times[:, 1:], times[:, :-1]))
    np.testing.assert_array_equal(np.asarray(window.gaps()) == 24, ~known)
    # Each example draws for itself, and each step anew.
    part = {name: values[7:9] for name, values in batch.items()}
    np.testing.assert_array_equal(training_events(part, KEY)[0].known, known[7:9])
    assert np.any(training_events(batch, jax.random.key(4))[0].known != window.known)


def test_windows_that_overlap_hide_the_same_rows():
    """R = 3: the last two rows of a window are the first ones of the next segment."""
    method, _ = make("hstu", bias="position_time", recent=3)
    window = method.config.data.window
    batch = batch_of([window + 1] * 9, window + 1, times=True)
    whole, *_ = training_events(batch, KEY)
    windows = cut_windows(batch, method.config.data, KEY).windows
    for h in range(3):
        at = slice(h * S, h * S + S + 2)
        for name in ("known", "row_times"):
            cut, expected = getattr(windows, name)[h::3], getattr(whole, name)[:, at]
            np.testing.assert_array_equal(cut, expected)
    assert not np.all(windows.known)


@pytest.mark.parametrize("name", ["recent", "kv_mask"])
def test_a_hidden_row_is_a_request_without_time(name):
    """Users with three events, of which the last one does not know its query time."""
    method, params = make("hstu", name=name, bias="position_time")
    index = np.arange(400, dtype=np.int32)
    many = batch_of([4] * 400, 10, times=True) | {"index": index}
    known = np.asarray(training_events(many, KEY)[0].known)[:, :3]
    chosen = np.flatnonzero((known == [True, True, False]).all(axis=1))
    assert len(chosen) > 5
    batch = {name: values[chosen] for name, values in many.items()}
    total, weight = jax.jit(method.loss)(params, batch, KEY)["ar"]
    assert weight == 3 * len(chosen)

    events = Events(batch["ids"][:, :3], batch["times"][:, :3])
    state, valid = method.init_state(params, len(chosen)), np.ones((len(chosen), 3), bool)
    read_all = jax.jit(method.read_all)

    def loss(request_time):
        logits = method.score(params, read_all(params, state, events, valid, request_time))
        log_p = np.asarray(jax.nn.log_softmax(logits[..., 1:], axis=-1))
        return -np.take_along_axis(log_p, batch["ids"][:, 1:4, None] - 1, axis=2).sum()

    np.testing.assert_allclose(total, loss(None), rtol=1e-5)
    assert abs(loss(batch["times"][:, 3]) - loss(None)) > 1
