"""Memories kept in fewer bytes: rounded after every update, and counted as they are stored."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.evaluator import evaluate
from rec2pm_jax.evaluation.histories import load_histories
from rec2pm_jax.evaluation.memory_states import compute_memories
from rec2pm_jax.evaluation.spec import EvalSpec
from rec2pm_jax.evaluation.targets import memory_rows
from rec2pm_jax.methods.codec import decode, encode
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.compute.compiled import update
from rec2pm_jax.typing import State
from tests.helpers.evaluate_fakes import FakeDataset
from tests.helpers.stream import make_config, random_params

SEGMENT, UPDATES = 5, 24


def one_by_one(method, params, histories, user: int, memory_format: str) -> State:
    """A user's state after UPDATES updates, through the bytes of a store after each of them."""
    state = method.init_state(params, 1)
    for turn in range(UPDATES):
        start = np.array([turn * SEGMENT])
        events, valid = histories.window(np.array([user]), start, np.array([SEGMENT]), SEGMENT)
        state = update(method, params, state, events, valid, None)
        memory = np.asarray(state.memory)
        kept = decode(encode(memory, memory_format), memory_format, memory.shape[-1])
        state = state._replace(memory=kept)
    return jax.tree.map(lambda a: np.asarray(a)[0], state)


@pytest.mark.parametrize("memory", ["overwrite", "append"])
@pytest.mark.parametrize("memory_format", ["bfloat16", "int8"])
def test_error_is_fed_back_over_many_updates(memory_format, memory):
    dataset = FakeDataset([UPDATES * SEGMENT + 3, UPDATES * SEGMENT], times=False)
    method = make_method(make_config(memory=memory), dataset.num_items)
    params = random_params(method)
    histories = load_histories(dataset, np.arange(2))
    rows = memory_rows(np.arange(2), np.zeros(2, int), np.full(2, UPDATES), SEGMENT)
    states = compute_memories(method, params, histories, rows, memory, 2, memory_format)
    found = states.memory
    exact = compute_memories(method, params, histories, rows, memory, 2).memory
    once = decode(encode(exact, memory_format), memory_format, exact.shape[-1])
    for user in range(2):
        expected, *rest = one_by_one(method, params, histories, user, memory_format)
        same = np.testing.assert_array_equal  # the exact memory is not rounded
        jax.tree.map(same, [a[user] for a in jax.tree.leaves(states[1:])], jax.tree.leaves(rest))
        # A value at a rounding edge may fall on either side: then one quantum apart, nothing more.
        close = np.isclose(found[user], expected, atol=1e-4)
        assert close.mean() > 0.9
        np.testing.assert_allclose(found[user], expected, atol=0.05)
    assert not np.array_equal(found, exact)
    assert not np.isclose(found, once, atol=1e-4).all()  # rounding at the end only is not the same


def test_bytes_are_those_of_the_format():
    dataset = FakeDataset([60, 40, 33])
    method = make_method(make_config(), dataset.num_items)  # 2 slots x 8, 4 entries of 8 bytes
    bytes_ = {}
    for memory_format in ("float32", "bfloat16", "int8"):
        found = evaluate(
            method,
            random_params(method),
            dataset,
            EvalSpec("test", memory_format=memory_format, swap=False),
        )
        bytes_[memory_format] = (found.state_bytes_per_user, found.state_bookkeeping_bytes)
    assert bytes_ == {"float32": (96, 8), "bfloat16": (64, 8), "int8": (56, 8)}
    with pytest.raises(UserError, match="float16"):
        evaluate(method, random_params(method), dataset, EvalSpec("test", memory_format="float16"))
