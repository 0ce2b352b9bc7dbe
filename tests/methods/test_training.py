"""Losses counted by hand from the functions that serve, and the routes of their gradients."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.methods.memory import fold
from rec2pm_jax.methods.rec2pm import Rec2PM
from rec2pm_jax.typing import Events
from tests.helpers.methods import SLOTS, batch_of, columns, make

S, K = 3, 3
CASES = [
    ("sasrec", "none", "overwrite", 1, 0),
    ("hstu", "position", "append", 3, 0),
    ("sasrec", "none", "overwrite", 3, 2),
    pytest.param("sasrec", "none", "append", 1, 1, marks=pytest.mark.slow),
]


@functools.cache
def compiled(method):
    return jax.jit(lambda p, b, r: method.loss(p, b, r, step=0))


def terms_of(method, params, batch, rng=None):
    """The loss terms as {name: (sum, weight)} of numpy scalars."""
    return jax.tree.map(np.asarray, compiled(method)(params, batch, rng))


@functools.cache
def served(method):
    return jax.jit(method.compress), jax.jit(method.update), jax.jit(method.read_all)


def cross_entropy(method, params, vectors, targets):
    """Sum over positions with a target, in float64."""
    logits = np.asarray(method.score(params, vectors), np.float64)[..., 1:]
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_p, np.maximum(targets - 1, 0)[..., None], -1)[..., 0]
    return -taken[targets > 0].sum()


class ByHand:
    """One user's training batch served segment by segment, as inference does."""

    def __init__(self, method, params, ids):
        """ids: int32 [T + 1]."""
        self.method, self.params = method, params
        self.inputs, self.targets = ids[None, :-1], ids[None, 1:]
        self._compress, self._update, self._read_all = served(method)

    def reference(self, h):
        """m_h^ref [1, C, D], of segments that hold any event."""
        whole = self.inputs[:, : K * S]
        valid = (whole > 0) & (np.arange(K * S) < (h + 1) * S)
        return self._compress(self.params, Events(whole), valid).memory[:, -SLOTS:]

    def window(self, h, length):
        ids = self.inputs[:, h * S : h * S + length]
        return Events(ids), ids > 0

    def previous(self, h, memories):
        """The state before segment h made of `memories` of the segments before it."""
        state = self.method.init_state(self.params, 1)
        for memory in memories[:h]:
            state = fold(state, jnp.asarray(memory), jnp.array([True]))
        return state

    def updated(self, h, memories):
        state = self.previous(h, memories)
        return self._update(self.params, state, *self.window(h, S)).memory[:, -SLOTS:]

    def read(self, h, memories):
        """(sum of cross-entropies, positions that have a target) of the window of segment h."""
        length = self.method.read_length
        targets = self.targets[:, h * S : h * S + length]
        state = self.previous(h, memories)
        vectors = self._read_all(self.params, state, *self.window(h, length))
        return cross_entropy(self.method, self.params, vectors, targets), (targets > 0).sum()


@pytest.mark.smoke
@pytest.mark.parametrize(("backbone", "bias", "memory", "recent", "sketch"), CASES)
def test_training_is_what_inference_does(backbone, bias, memory, recent, sketch):
    """AR: `read_all` with the reference memories as state. L_con: `update` on the same state."""
    method, params = make(backbone, bias=bias, memory=memory, recent=recent, sketch=sketch)
    window = method.config.data.window
    lengths = [window + 1, 8, 4]  # ids; one input less than ids
    batch = batch_of(lengths, window + 1)
    terms = terms_of(method, params, batch)

    ar, count, consistency, whole = 0.0, 0, 0.0, 0
    for ids, length in zip(batch["ids"], lengths, strict=True):
        user = ByHand(method, params, ids)
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
def test_live_memories_are_an_unbroken_recurrence_of_what_updates_say(memory):
    """live = 1: what the updates of the reference memories say, folded by `leave` from nothing on."""
    method, params = make(live=1.0, memory=memory)
    batch = batch_of([10, 10], 10)
    terms = terms_of(method, params, batch, jax.random.key(0))
    update_pass = jax.jit(method._update_pass)
    ar, consistency = 0.0, 0.0
    for ids in batch["ids"]:
        user = ByHand(method, params, ids)
        reference = [user.reference(h) for h in range(K)]
        live, state = [], method.init_state(params, 1)
        for h in range(K):
            events, valid = user.window(h, S)
            lengths = valid.sum(axis=1).astype(np.int32)
            _, said = update_pass(params, user.previous(h, reference), events, lengths, None)
            live.append(method._leave(params, said, state))
            state = fold(state, live[-1], jnp.array([True]))
        np.testing.assert_allclose(live[0], reference[0], atol=1e-5)
        np.testing.assert_allclose(live[1], user.updated(1, reference), atol=1e-5)
        assert np.abs(live[2] - user.updated(2, reference)).max() > 1e-3  # the chain matters
        ar += sum(user.read(h, live)[0] for h in range(K))
        for h in range(1, K):
            consistency += np.mean(np.square(user.updated(h, live) - reference[h]))
    np.testing.assert_allclose(terms["ar"][0], ar, rtol=1e-5)
    np.testing.assert_allclose(terms["consistency"][0], consistency, rtol=1e-4)


class WholeUpdates(Rec2PM):
    """The chain written out: whole update passes over all windows, folded from nothing on."""

    def _live(self, params, reference, windows, rng, hidden):
        before = self._previous(reference)
        _, at_queries = self._update_windows(params, before, windows, rng, hidden)
        at_queries = at_queries.reshape(len(reference), K, *reference.shape[2:])
        state, memories = self.init_state(params, len(reference)), []
        for h in range(K - 1):
            memories.append(self._leave(params, at_queries[:, h], state))
            state = fold(state, memories[-1], jnp.ones(len(reference), bool))
        return jnp.stack(memories, axis=1)


@pytest.mark.parametrize(("backbone", "bias", "memory", "recent", "sketch"), CASES)
def test_the_chain_leaves_out_only_what_nobody_needs(backbone, bias, memory, recent, sketch):
    """Loss and gradients against updates of all segments, at all of their rows and events."""
    method, params = make(backbone, bias=bias, memory=memory, recent=recent, sketch=sketch)
    window = method.config.data.window
    batch = batch_of([window + 1, 8, 4], window + 1)

    def objective(method):
        def total(params):
            terms = method.loss(params, batch, jax.random.key(0), step=0)
            return sum(value for value, _ in terms.values())

        return jax.jit(jax.value_and_grad(total))(params)

    got, expected = objective(method), objective(WholeUpdates(method.config, method.num_items))
    scale = max(np.abs(a).max() for a in jax.tree.leaves(expected[1]))
    for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * scale)


def test_training_is_what_inference_does_with_a_time_bias():
    """With request times, a served user's memory is the one the reader was trained on."""
    method, params = make("hstu", bias="position_time")
    batch = batch_of([10, 10], 10, times=True)
    events = Events(batch["ids"][:, :9], batch["times"][:, :9])
    lengths, ends = np.array([9, 9], np.int32), np.array([[3, 6, 9]], np.int32)
    trained, _ = jax.jit(method._reference_pass)(
        params, events, lengths, ends, batch["times"][:, 1:]
    )
    first = columns(events, 0, S)
    seen = (first, first.ids > 0)
    update = lambda p, *args: method.update(p, method.init_state(p, 2), *args)  # noqa: E731
    for memory_of in (jax.jit(update), jax.jit(method.compress)):
        state = memory_of(params, *seen, batch["times"][:, S])
        np.testing.assert_allclose(state.memory, trained[:, 0], atol=1e-4)
        unaware = memory_of(params, *seen)
        assert np.abs(unaware.memory - trained[:, 0]).max() > 1e-3  # the argument matters


def test_reference_ar_is_the_loss_of_a_pass_without_queries():
    method, params = make("hstu", bias="position", reference_ar=0.5)
    batch = batch_of([10, 5], 10)
    terms = terms_of(method, params, batch)
    total = 0.0
    for ids in batch["ids"]:
        inputs, targets = ids[None, :-1], ids[None, 1:]
        lengths = np.array([(inputs > 0).sum()], np.int32)
        ends = np.array([[1]], np.int32)  # any group: events do not see it
        run = jax.jit(method._reference_pass, static_argnames="items")
        _, items = run(params, Events(inputs), lengths, ends, None, items=True)
        total += cross_entropy(method, params, items, targets)
    np.testing.assert_allclose(terms["reference_ar"][0], total, rtol=1e-5)
    assert terms["reference_ar"][1] == 9 + 4


@pytest.mark.parametrize(
    ("name", "sketch"), [("full", 0), ("recent", 0), ("full", 2), ("recent", 3)]
)
def test_single_pass_losses_are_what_reads_score(name, sketch):
    """`full` predicts every position of the window once, `recent` every position of K windows."""
    method, params = make(name=name, recent=2, sketch=sketch)
    window = method.config.data.window
    batch = batch_of([window + 1, 6], window + 1)
    terms = terms_of(method, params, batch)
    step, length, count = (0, window, 1) if name == "full" else (S, S + 1, K)
    total, positions = 0.0, 0
    read_all = jax.jit(method.read_all)
    for ids in batch["ids"]:
        for h in range(count):
            part = ids[None, h * step : h * step + length + 1]
            inputs, targets = part[:, :-1], part[:, 1:]
            vectors = read_all(params, method.init_state(params, 1), Events(inputs), inputs > 0)
            total += cross_entropy(method, params, vectors, targets)
            positions += (targets > 0).sum()
    np.testing.assert_allclose(terms["ar"][0], total, rtol=1e-5)
    assert terms["ar"][1] == positions
    assert set(terms) == set(method.loss_weights(0)) == {"ar"}


def test_consistency_reduction_ramp_and_coefficients():
    method, params = make(consistency=2.0, consistency_ramp=10, bag=0.3, reference_ar=0.4)
    summed, _ = make(consistency_reduction="sum")
    batch = batch_of([10], 10)
    mean, total = (terms_of(m, params, batch)["consistency"][0] for m in (method, summed))
    np.testing.assert_allclose(total, mean * SLOTS * method.config.model.dim, rtol=1e-5)
    ramp = [float(method.loss_weights(step)["consistency"]) for step in (0, 5, 10, 99)]
    np.testing.assert_allclose(ramp, [0, 1, 2, 2], rtol=1e-6)
    at_start = {k: round(float(v), 6) for k, v in method.loss_weights(0).items()}
    expected = {"ar": 1, "consistency": 0, "reference_ar": 0.4, "bag": 0.3}
    assert at_start == expected


# --- gradients ---


@functools.cache
def compiled_gradient(method, term):
    return jax.jit(jax.grad(lambda p, batch: method.loss(p, batch, None, step=0)[term][0]))


def gradient(method, params, batch, term):
    return compiled_gradient(method, term)(params, batch)


def test_next_item_loss_reaches_the_queries_through_the_memory():
    """Events never see Q, so its gradient comes through m_{h-1}^ref alone: none with one segment."""
    method, params = make()
    one_segment = batch_of([4, 3], 10)  # inputs fill segment 0 only
    for batch, reached in ((batch_of([10, 10], 10), True), (one_segment, False)):
        got = gradient(method, params, batch, "ar")["memory"]["query_embedding"]
        assert np.all(got) if reached else not np.any(got)


def test_stopping_the_target_cuts_consistency_from_the_reference_only():
    rng = np.random.default_rng(0)
    reference, updated = rng.normal(0, 1, (2, 2, 3, SLOTS, 8)).astype(np.float32)
    whole = np.array([[True, True, True], [True, True, False]])
    for stop in (True, False):
        method, _ = make(stop_target=stop)
        value, (to_reference, to_updated) = jax.value_and_grad(
            lambda r, u, method=method: method._consistency(r, u, whole)[0], argnums=(0, 1)
        )(reference, updated)
        counted = [(0, 1), (0, 2), (1, 1)]  # whole segments after the first
        expected = sum(np.mean(np.square(updated[i] - reference[i])) for i in counted)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        assert np.any(to_reference) != stop
        reached = np.any(np.asarray(to_updated), axis=(2, 3))
        np.testing.assert_array_equal(reached, [[0, 1, 1], [0, 1, 0]])


def test_consistency_reaches_the_reference_through_the_input_even_when_stopped():
    """m_{h-1}^ref is what the update starts from: stopping is for the target alone."""
    batch = batch_of([10, 10], 10)
    stopped, flowing = (
        gradient(make(stop_target=stop)[0], make()[1], batch, "consistency")["memory"]
        for stop in (True, False)
    )
    assert np.any(stopped["adapter"]["kernel"])
    assert not np.allclose(stopped["query_embedding"], flowing["query_embedding"], rtol=1e-2)


def test_bag_predicts_the_items_of_the_next_segment_only():
    method, params = make(bag=0.5)
    batch = batch_of([10, 5, 3], 10)  # inputs 9, 5 (3 + 2 of a part) and 3
    total, weight = terms_of(method, params, batch)["bag"]
    expected = 0.0
    for ids in batch["ids"]:
        user = ByHand(method, params, ids)
        for h in range(K - 1):
            following = user.inputs[:, (h + 1) * S : (h + 2) * S]
            vector = np.asarray(user.reference(h)).reshape(1, 1, -1) @ params["memory"]["recall"]
            vectors = np.repeat(vector, S, axis=1)
            expected += cross_entropy(method, params, vectors, following)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    assert weight == 6 + 2 + 0
    assert all(
        np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient(method, params, batch, "bag"))
    )


def test_hiding_and_dropout_need_a_key_and_change_the_loss():
    hide, params = make(hide=1.0)
    batch = batch_of([10, 10], 10)
    plain = terms_of(make()[0], params, batch)["ar"][0]
    np.testing.assert_allclose(terms_of(hide, params, batch)["ar"][0], plain, rtol=1e-6)
    hidden = [terms_of(hide, params, batch, jax.random.key(s))["ar"][0] for s in (0, 0, 1)]
    assert hidden[0] == hidden[1] != hidden[2] and abs(hidden[0] - plain) > 1e-3
    dropped, _ = make(model=(("dropout", 0.5),))
    np.testing.assert_allclose(terms_of(dropped, params, batch)["ar"][0], plain, rtol=1e-6)
    losses = [terms_of(dropped, params, batch, jax.random.key(s))["ar"][0] for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_sampled_softmax_in_training():
    loss = (("kind", "sampled_softmax"), ("negatives", 5), ("normalize", True))
    method, params = make(loss=(*loss, ("temperature", 0.05), ("in_batch", True)))
    terms = terms_of(method, params, batch_of([10, 5], 10), jax.random.key(0))
    assert all(np.isfinite(total) for total, _ in terms.values())
    assert terms["ar"][1] == 9 + 4


@pytest.mark.parametrize(
    ("name", "sharing"),
    [
        ("rec2pm", "per_position"),
        ("recent", "shared"),
        ("tok_serial", "shared"),
        ("kv_mask", "per_position"),
    ],
)
def test_randomness_does_not_depend_on_the_division_of_the_batch(name, sharing):
    """Dropout, hidden events, live memories and negatives of an example are its own."""
    loss = (("kind", "sampled_softmax"), ("negatives", 4), ("sharing", sharing))
    method, params = make(name=name, model=(("dropout", 0.5),), loss=loss, hide=0.5, live=0.5)
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
