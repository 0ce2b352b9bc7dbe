"""Diagnostics on memories whose answers are known."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.config import Config, DataConfig, MethodConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.diagnostics import memory_diagnostics
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.report import diagnostics_table
from rec2pm_jax.evaluation.spec import EvalSpec
from tests.helpers.evaluate_fakes import PARAMS, FakeDataset, FakeMethod

CONFIG = Config(data=DataConfig(segment=5, segments=3), method=MethodConfig(slots=1))
LENGTHS = [23, 70, 41, 21, 33, 66, 28]


class TasteDataset(FakeDataset):
    """The first events show which item a user will choose in the end; between them is item 1."""

    def __init__(self, users=12):
        super().__init__([26] * users, num_items=users + 1, times=False)
        for user, ids in enumerate(self._ids):
            ids[:] = 1
            ids[:5] = ids[-1] = user + 2


class KeepFirst(FakeMethod):
    """Keeps the memory of the first segment; compressing at once gives the same."""

    def update(self, params, state, events, valid, *next_time):
        new = super().update(params, state, events, valid, *next_time)
        return new._replace(memory=jnp.where(state.groups[:, None, None] > 0, state[0], new[0]))

    def compress(self, params, events, valid, *next_time):
        first = events._replace(ids=events.ids[:, :5])
        return super().compress(params, first, valid[:, :5], *next_time)


def test_a_memory_that_carries_taste_shows_in_every_figure():
    config = Config(
        data=DataConfig(segment=5, segments=3, protocol="leave_one_out"),
        method=MethodConfig(slots=1),
    )
    dataset = TasteDataset()
    method = KeepFirst(config, dataset.num_items)
    found = memory_diagnostics(method, PARAMS, dataset, EvalSpec("test"))
    gains = found["ndcg@10"]
    # The taste ranks second, behind item 1 of the window; with the mean memory all tastes tie.
    assert gains["own"] == pytest.approx(1 / np.log2(3))
    assert gains["swapped"] == gains["zero"] == gains["mean"] == 0
    assert gains["targets"] == 12
    figures = found["memory"]
    assert figures["persistence"] == 0
    # One-hot memories of 12 users at height 5: each of 12 elements has variance 25 * 11 / 144.
    assert figures["between_user_variance"] == pytest.approx(12 * 25 * 11 / 144 / 14)
    assert figures["effective_rank"] == pytest.approx(11)
    assert figures["slot_cosine"] is None
    assert [(row["updates"], row["squared_distance"]) for row in found["drift"]] == [(1, 0), (5, 0)]


def test_own_and_swapped_are_those_of_the_evaluator_where_all_have_memory():
    method, dataset = FakeMethod(CONFIG, 12), FakeDataset(LENGTHS)
    found = memory_diagnostics(method, PARAMS, dataset, EvalSpec("test"))
    record = evaluate(method, PARAMS, dataset, EvalSpec("test")).record(config={})
    assert found["ndcg@10"]["own"] == pytest.approx(record["metrics"]["ndcg@10"])
    assert found["ndcg@10"]["swapped"] == pytest.approx(record["swap"]["ndcg@10"])
    assert found["memory"]["between_user_variance"] == pytest.approx(record["memory_variance"])


def test_positions_partition_the_targets():
    method, dataset = FakeMethod(CONFIG, 12), FakeDataset(LENGTHS)
    found = memory_diagnostics(method, PARAMS, dataset, EvalSpec("validation"))
    parts = found["by_raw_events"]
    assert parts[0]["from"] == 1 and parts[-1]["to"] == method.read_length
    assert sum(part["targets"] for part in parts) == found["ndcg@10"]["targets"]
    weighted = sum(part["own"] * part["targets"] for part in parts if part["targets"])
    assert weighted / found["ndcg@10"]["targets"] == pytest.approx(found["ndcg@10"]["own"])


def test_drift_and_persistence_equal_their_definitions():
    method, dataset = FakeMethod(CONFIG, 12), FakeDataset(LENGTHS, times=False)
    found = memory_diagnostics(method, PARAMS, dataset, EvalSpec("test"))

    def counts(user, h):  # of segment h
        return np.bincount(dataset.sequence(user).ids[5 * h : 5 * h + 5], minlength=13)

    def memory(user, updates):
        m = np.zeros(13)
        for h in range(updates):
            m = m / 2 + counts(user, h)
        return m

    enough = [user for user, n in enumerate(LENGTHS) if n >= 25]
    iterated = np.stack([memory(user, 5) for user in enough])
    one_time = np.stack([sum(counts(user, h) for h in range(5)) for user in enough])
    row = found["drift"][1]
    assert (row["updates"], row["users"]) == (5, len(enough))
    assert row["squared_distance"] == pytest.approx(np.square(iterated - one_time).mean())
    assert row["relative"] == pytest.approx(
        np.square(iterated - one_time).mean() / one_time.var(axis=0).mean()
    )
    last = [(memory(u, (n - 2) // 5), memory(u, (n - 2) // 5 - 1)) for u, n in enumerate(LENGTHS)]
    expected = np.mean([np.square(now - before) for now, before in last])
    assert found["memory"]["persistence"] == pytest.approx(expected)


def test_result_is_json_and_prints():
    found = memory_diagnostics(
        FakeMethod(CONFIG, 12), PARAMS, FakeDataset(LENGTHS), EvalSpec("test")
    )
    json.dumps(found, allow_nan=False)
    text = diagnostics_table(found)
    for word in ("own memory", "swapped memory", "zero memory", "mean memory", "slot cosine"):
        assert word in text


def test_methods_without_memory_and_short_histories_are_user_errors():
    recent = FakeMethod(Config(method=MethodConfig(name="recent")), 12)
    with pytest.raises(UserError, match="recent has no memory"):
        memory_diagnostics(recent, PARAMS, FakeDataset([30]), EvalSpec("test"))
    with pytest.raises(UserError, match="Fewer than two users"):
        memory_diagnostics(
            FakeMethod(Config(), 12), PARAMS, FakeDataset([24] * 3), EvalSpec("test")
        )
