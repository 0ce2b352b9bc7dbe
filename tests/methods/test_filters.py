"""Filters of a method with own items: the ranking of all scores without what is left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.filters import ItemFilter
from rec2pm_jax.typing import Events
from tests.helpers.stream import make_config, random_params

ITEMS, USERS, K = 60, 5, 12


@pytest.fixture(scope="module")
def read():
    """(method, params, readout): own items are among the best, as their addends are large."""
    method = make_method(make_config(), ITEMS)
    params = random_params(method)
    own = jax.tree.map(lambda weights: 10 * jnp.abs(weights), params["own_items"])
    params = params | {"own_items": own}
    rng = np.random.default_rng(0)
    ids = rng.integers(1, ITEMS + 1, (USERS, method.read_length)).astype(np.int32)
    events = Events(jnp.asarray(ids))
    state = method.init_state(params, USERS)
    readout = jax.jit(method.read)(params, state, events, jnp.ones(ids.shape, bool))
    return method, params, readout


def draw_rules():
    rng = np.random.default_rng(1)
    denied = rng.integers(0, ITEMS + 1, (USERS, 20)).astype(np.int32)
    blocked = rng.random(ITEMS + 1) < 0.5
    candidates = np.stack([rng.permutation(ITEMS)[:16] + 1 for _ in range(USERS)]).astype(np.int32)
    few = np.ones(ITEMS + 1, bool)
    few[[3, 9, 30]] = False
    return {
        "none": ItemFilter(),
        "denied": ItemFilter(denied),
        "blocked": ItemFilter(None, blocked),
        "both": ItemFilter(denied, blocked),
        "candidates": ItemFilter(candidates=candidates),
        "all three": ItemFilter(denied, blocked, candidates),
        "fewer than k": ItemFilter(blocked=few),
    }


@pytest.mark.parametrize("name", draw_rules())
def test_best_is_the_slow_ranking_without_what_is_left_out(read, name):
    method, params, readout = read
    rule = draw_rules()[name]
    scores = np.asarray(method.score(params, readout))
    best, items = method.best(params, readout, K, None, jax.tree.map(jnp.asarray, rule))
    own = np.asarray(readout.own.ids)
    for user, row in enumerate(scores):
        allowed = set(range(1, ITEMS + 1))
        if rule.candidates is not None:
            allowed &= set(rule.candidates[user].tolist())
        if rule.denied is not None:
            allowed -= set(rule.denied[user].tolist())
        if rule.blocked is not None:
            allowed -= set(np.flatnonzero(rule.blocked).tolist())
        expected = sorted(allowed, key=lambda item: (-row[item], item))[:K]
        kept = np.isfinite(best[user])
        assert np.asarray(items[user])[kept].tolist() == expected
        np.testing.assert_allclose(best[user][kept], row[expected], rtol=1e-5, atol=1e-5)
        if name == "none":
            assert set(expected[:3]) & set(own[user].tolist())
