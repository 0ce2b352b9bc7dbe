"""Losses counted by hand from the functions that serve, and the routes of their gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods import rec2pm
from rec2pm_jax.methods.memory import fold
from rec2pm_jax.typing import Events
from tests.helpers.methods import (
    SLOTS,
    batch_of,
    columns,
    make,
    reference_pass,
    to_memory,
    update_pass,
)

S, K = 3, 3
CASES = [
    ("sasrec", "none", "overwrite", 1),
    pytest.param("hstu", "position_time", "append", 3, marks=pytest.mark.slow),
    pytest.param("sasrec", "none", "overwrite", 3, marks=pytest.mark.slow),
    pytest.param("sasrec", "none", "append", 1, marks=pytest.mark.slow),
]


@functools.cache
def compiled(method):
    return jax.jit(lambda p, b, r: method.loss(p, b, r))


def terms_of(method, params, batch, rng=None):
    """The loss terms as {name: (sum, weight)} of numpy scalars."""
    return jax.tree.map(np.asarray, compiled(method)(params, batch, rng))


@functools.cache
def served(method):
    return jax.jit(method.compress), jax.jit(method.update), jax.jit(method.read_all)


def cross_entropy(method, params, readout, targets):
    """Sum over positions with a target, in float64."""
    logits = np.asarray(method.score(params, readout), np.float64)[..., 1:]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_p, np.maximum(targets - 1, 0)[..., None], -1)[..., 0]
    return -taken[targets > 0].sum()


class ByHand:
    """One user's training batch served segment by segment, as inference does."""

    def __init__(self, method, params, ids, times=None):
        """ids, times: int32 [T + 1]."""
        self.method, self.params = method, params
        self.inputs, self.targets = ids[None, :-1], ids[None, 1:]
        self.times = None if times is None else times[None]
        self._compress, self._update, self._read_all = served(method)

    def reference(self, h):
        """m_h^ref [1, C, D], of segments that hold any event."""
        events, valid, asked = self.window(0, K * S)
        valid = valid & (np.arange(K * S) < (h + 1) * S)
        if self.times is not None:
            asked = self.times[:, valid.sum()]
        return self._compress(self.params, events, valid, asked).memory[:, -SLOTS:]

    def window(self, h, length):
        """(events, valid, the time of the event after them) of a window."""
        at = slice(h * S, min(h * S + length, self.inputs.shape[1]))
        ids = self.inputs[:, at]
        if self.times is None:
            return Events(ids), ids > 0, None
        after = self.times[:, at.start + np.sum(ids > 0)]
        return Events(ids, self.times[:, at]), ids > 0, after

    def previous(self, h, memories):
        """The state before segment h made of `memories` of the segments before it."""
        state = self.method.init_state(self.params, 1)
        for segment, memory in enumerate(memories[:h]):
            exact = self._update(self.params, state, *self.window(segment, S)).exact
            state = fold(state, jnp.asarray(memory), jnp.array([True]))._replace(exact=exact)
        return state

    def updated(self, h, memories):
        state = self.previous(h, memories)
        return self._update(self.params, state, *self.window(h, S)).memory[:, -SLOTS:]

    def read(self, h, memories):
        """(sum of cross-entropies, positions that have a target) of the window of segment h."""
        length = self.method.read_length
        targets = self.targets[:, h * S : h * S + length]
        state = self.previous(h, memories)
        readout = self._read_all(self.params, state, *self.window(h, length))
        return cross_entropy(self.method, self.params, readout, targets), (targets > 0).sum()


@pytest.mark.smoke
@pytest.mark.parametrize(("backbone", "bias", "memory", "recent"), CASES)
def test_training_is_what_inference_does(backbone, bias, memory, recent):
    """AR: `read_all` with the reference memories as state. L_con: `update` on the same state."""
    method, params = make(backbone, bias=bias, memory=memory, recent=recent)
    window = method.config.data.window
    lengths = [window + 1, 8, 4]  # ids; one input less than ids
    batch = batch_of(lengths, window + 1, times=method.config.uses_times)
    terms = terms_of(method, params, batch)

    ar, count, consistency, whole = 0.0, 0, 0.0, 0
    for index, length in enumerate(lengths):
        user = ByHand(method, params, *(batch[n][index] for n in ("ids", "times") if n in batch))
        inputs = min(length, window)  # a full row's last id is only a target
        memories = [user.reference(h) for h in range(K)]
        for h in range(K):
            total, positions = user.read(h, memories)
            ar, count = ar + total, count + positions
            if h and (h + 1) * S <= inputs:
                difference = user.updated(h, memories) - memories[h]
                consistency, whole = consistency + np.mean(np.square(difference)), whole + 1
    np.testing.assert_allclose(terms["ar"][0], ar, rtol=1e-5)
    assert terms["ar"][1] == count
    np.testing.assert_allclose(terms["consistency"][0], consistency, rtol=1e-4)
    assert terms["consistency"][1] == whole == 2 + 1 + 0


@pytest.mark.parametrize("memory", ["overwrite", "append"])
def test_live_memories_are_an_unbroken_recurrence(memory):
    """Updates read the reference memories; their outputs are folded from the first segment on."""
    method, params = make(live_memory_prob=1.0, memory=memory)
    batch = batch_of([10, 10], 10)
    terms = terms_of(method, params, batch, jax.random.key(0))
    run = jax.jit(update_pass, static_argnums=0)
    ar, consistency = 0.0, 0.0
    for ids in batch["ids"]:
        user = ByHand(method, params, ids)
        reference = [user.reference(h) for h in range(K)]
        live, state = [], method.init_state(params, 1)
        for h in range(K):
            events, valid, _ = user.window(h, S)
            lengths = valid.sum(axis=1).astype(np.int32)
            _, outputs = run(method, params, user.previous(h, reference), events, lengths, None)
            live.append(to_memory(method, params, outputs, state))
            state = fold(state, live[-1], jnp.array([True]))
        np.testing.assert_allclose(live[0], reference[0], atol=1e-5)
        np.testing.assert_allclose(live[1], user.updated(1, reference), atol=1e-5)
        assert np.abs(live[2] - user.updated(2, reference)).max() > 1e-3  # the chain matters
        ar += sum(user.read(h, live)[0] for h in range(K))
        for h in range(1, K):
            consistency += np.mean(np.square(user.updated(h, live) - reference[h]))
    np.testing.assert_allclose(terms["ar"][0], ar, rtol=1e-5)
    np.testing.assert_allclose(terms["consistency"][0], consistency, rtol=1e-4)


def whole_updates(memory, params, reference, windows, rng):
    """`live_memories` written out: whole update passes over all windows, folded from the first on."""
    before = rec2pm.states_before(memory, reference)  # queries do not read the exact memory
    _, at_queries = memory.update_pass(params, before, windows, rng)
    at_queries = at_queries.reshape(len(reference), K, *reference.shape[2:])
    state, memories = memory.init_state(len(reference)), []
    for h in range(K - 1):
        memories.append(memory.apply(params, "from_query_outputs", at_queries[:, h], state))
        state = fold(state, memories[-1], jnp.ones(len(reference), bool))
    return jnp.stack(memories, axis=1)


@pytest.mark.parametrize(("backbone", "bias", "memory", "recent"), CASES)
def test_live_memories_compute_only_what_is_needed(monkeypatch, backbone, bias, memory, recent):
    """Loss and gradients against updates of all segments, at all of their rows and events."""
    method, params = make(backbone, bias=bias, memory=memory, recent=recent)
    window = method.config.data.window
    batch = batch_of([window + 1, 8, 4], window + 1, times=method.config.uses_times)

    def objective():
        def total(params):
            terms = method.loss(params, batch, jax.random.key(0))
            return sum(value for value, _ in terms.values())

        return jax.jit(jax.value_and_grad(total))(params)

    got = objective()
    monkeypatch.setattr(rec2pm, "live_memories", whole_updates)
    expected = objective()
    scale = max(np.abs(a).max() for a in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale)


def test_training_is_what_inference_does_with_a_time_bias():
    """With request times, a served user's memory is the one the reader was trained on."""
    method, params = make("hstu", bias="position_time")
    batch = batch_of([10, 10], 10, times=True)
    events = Events(batch["ids"][:, :9], batch["times"][:, :9])
    lengths, ends = np.array([9, 9], np.int32), np.array([[3, 6, 9]], np.int32)
    run = jax.jit(reference_pass, static_argnums=0)
    trained = run(method, params, events, lengths, ends, batch["times"][:, 1:])
    first = columns(events, 0, S)
    seen = (first, first.ids > 0)
    update = lambda p, *args: method.update(p, method.init_state(p, 2), *args)  # noqa: E731
    for memory_of in (jax.jit(update), jax.jit(method.compress)):
        state = memory_of(params, *seen, batch["times"][:, S])
        np.testing.assert_allclose(state.memory, trained[:, 0], atol=1e-4)
        unaware = memory_of(params, *seen)
        assert np.abs(unaware.memory - trained[:, 0]).max() > 1e-3  # the argument matters


SINGLE = [("full", "none"), ("recent", "position_time"), ("recent", "none")]


@pytest.mark.parametrize(("name", "bias"), SINGLE)
def test_single_pass_losses_are_what_reads_score(name, bias):
    """`full` predicts every position of the window once, `recent` every position of K windows.

    `recent` has the exact memory of the segments before.
    """
    backbone = "sasrec" if bias == "none" else "hstu"
    method, params = make(backbone, name=name, recent=2, bias=bias)
    window = method.config.data.window
    batch = batch_of([window + 1, 6], window + 1, times=method.config.uses_times)
    terms = terms_of(method, params, batch)
    step, length, count = (0, window, 1) if name == "full" else (S, S + 1, K)
    total, positions = 0.0, 0
    _, update, read_all = served(method)
    for index in range(2):
        user = ByHand(method, params, *(batch[n][index] for n in ("ids", "times") if n in batch))
        state = method.init_state(params, 1)
        for h in range(count):
            targets = user.targets[:, h * step : h * step + length]
            readout = read_all(params, state, *user.window(h, length))
            total += cross_entropy(method, params, readout, targets)
            positions += (targets > 0).sum()
            state = update(params, state, *user.window(h, S))
    np.testing.assert_allclose(terms["ar"][0], total, rtol=1e-5)
    assert terms["ar"][1] == positions
    assert set(terms) == set(method.loss_weights) == {"ar"}


def test_loss_weights_are_the_configured_ones():
    method, params = make(consistency=0.3)
    assert method.loss_weights == {"ar": 1.0, "consistency": 0.3}
    assert set(terms_of(method, params, batch_of([10], 10))) == {"ar", "consistency"}


# --- gradients ---


@functools.cache
def compiled_gradient(method, term):
    return jax.jit(jax.grad(lambda p, batch: method.loss(p, batch, None)[term][0]))


def gradient(method, params, batch, term):
    return compiled_gradient(method, term)(params, batch)


def test_next_item_loss_reaches_the_queries_through_the_memory():
    """Events never see Q, so its gradient comes through m_{h-1}^ref alone: none with one segment."""
    method, params = make()
    one_segment = batch_of([4, 3], 10)  # inputs fill segment 0 only
    for batch, reached in ((batch_of([10, 10], 10), True), (one_segment, False)):
        got = gradient(method, params, batch, "ar")["memory"]["query_embedding"]
        assert np.all(got) if reached else not np.any(got)


def test_consistency_moves_both_sides_on_whole_segments_after_the_first():
    rng = np.random.default_rng(0)
    reference, updated = rng.normal(0, 1, (2, 2, 3, SLOTS, 8)).astype(np.float32)
    whole = np.array([[True, True, True], [True, True, False]])
    value, gradients = jax.value_and_grad(
        lambda r, u: rec2pm.consistency(r, u, whole)[0], argnums=(0, 1)
    )(reference, updated)
    counted = [(0, 1), (0, 2), (1, 1)]
    expected = sum(np.mean(np.square(updated[i] - reference[i])) for i in counted)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient in gradients:
        reached = np.any(np.asarray(gradient), axis=(2, 3))
        np.testing.assert_array_equal(reached, [[0, 1, 1], [0, 1, 0]])


def test_dropout_needs_a_key_and_changes_the_loss():
    method, params = make(live_memory_prob=0.0)
    dropped, _ = make(live_memory_prob=0.0, model=(("dropout", 0.5),))
    batch = batch_of([10, 10], 10)
    plain = terms_of(method, params, batch)["ar"][0]
    np.testing.assert_allclose(terms_of(dropped, params, batch)["ar"][0], plain, rtol=1e-6)
    losses = [terms_of(dropped, params, batch, jax.random.key(s))["ar"][0] for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2] and abs(losses[0] - plain) > 1e-3


def test_sampled_softmax_in_training():
    method, params = make(loss=(("negatives", 5),))
    terms = terms_of(method, params, batch_of([10, 5], 10), jax.random.key(0))
    assert all(np.isfinite(total) for total, _ in terms.values())
    assert terms["ar"][1] == 9 + 4


@pytest.mark.parametrize(
    ("name", "sharing"),
    [
        pytest.param("rec2pm", "per_position", marks=pytest.mark.slow),
        ("recent", "shared"),
        pytest.param("tok_serial", "shared", marks=pytest.mark.slow),
        pytest.param("kv_mask", "per_position", marks=pytest.mark.slow),
    ],
)
def test_randomness_does_not_depend_on_the_division_of_the_batch(name, sharing):
    """An example draws dropout, live memories and negatives whatever its batch mates are."""
    loss = (("negatives", 4), ("sharing", sharing))
    method, params = make(name=name, model=(("dropout", 0.5),), loss=loss, live_memory_prob=0.5)
    batch = batch_of([10, 8, 10], 10)
    whole = terms_of(method, params, batch, jax.random.key(3))
    parts = [
        terms_of(method, params, {k: v[i : i + 1] for k, v in batch.items()}, jax.random.key(3))
        for i in range(3)
    ]
    for term, (total, _) in whole.items():
        np.testing.assert_allclose(total, sum(p[term][0] for p in parts), rtol=1e-5)
    other = terms_of(method, params, batch | {"index": batch["index"] + 3}, jax.random.key(3))
    assert abs(other["ar"][0] - whole["ar"][0]) > 1e-3
