"""Tiny configurations, parameters of order one and random histories for tests of methods."""

from __future__ import annotations

import functools

import jax
import numpy as np
import optax

from rec2pm_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    MethodConfig,
    ModelConfig,
)
from rec2pm_jax.methods import rec2pm
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.typing import Events, ExactMemory, State

ITEMS, DIM, SLOTS, ENTRIES = 11, 8, 2, 4
LITERAL = dict(exact_entries=0, model=(("repeat_head", False),))  # vectors are all that scores


@functools.cache
def make(
    backbone="sasrec",
    *,
    name="rec2pm",
    memory="overwrite",
    bias="none",
    recent=1,
    max_groups=2,
    exact_entries=ENTRIES,
    model=(),
    loss=(),
    **method,
):
    """(method, params): S = 3, K = 3, C = 2, E = 4, two layers of width 8, no dropout.

    `model` and `loss` are tuples of (field, value); other keywords are fields of MethodConfig. A model
    with a time bias reads the other times as well.
    """
    times = dict(relative_bias=bias, use_times=bias == "position_time")
    model = dict(backbone=backbone, layers=2, heads=2, dim=DIM, dropout=0.0) | times | dict(model)
    method |= dict(max_groups=max_groups, exact_entries=exact_entries)
    config = Config(
        data=DataConfig(segment=3, segments=3, recent=recent),
        model=ModelConfig(**model),
        method=MethodConfig(name=name, memory=memory, slots=SLOTS, **method),
        loss=LossConfig(**dict(loss)),
    )
    made = make_method(config, ITEMS)
    return made, large_parameters(made)


def known_window(events, lengths, query_times):
    """A window whose query times, int32 [B, N] or None, are all known."""
    known = None if query_times is None else np.ones(query_times.shape, bool)
    return Window(events, lengths, query_times, known)


def reference_pass(method, params, events, lengths, ends, query_times):
    """m^ref [B, groups, C, D] of Rec2PM's reference pass."""
    history = known_window(events, lengths, query_times)
    return rec2pm.reference_pass(method.memory, params, history, ends)


def update_pass(method, params, state, events, lengths, query_times):
    """What the events [B, N] read, and the outputs at Q [B, C, D], of the update pass."""
    window = known_window(events, lengths, query_times)
    return method.memory.update_pass(params, state, window, None)


def to_memory(method, params, at_queries, state):
    """m_k [B, C, D], of the outputs at Q and the state before."""
    return method.memory.apply(params, "from_query_outputs", at_queries, state)


def large_parameters(method):
    """Random float32 parameters large enough that every part of the model matters."""
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: rng.normal(0, 0.4, a.shape).astype(np.float32), shapes)


def histories(lengths, width, times=False, types=0, seed=0):
    """(Events [B, width], valid): random users, padded on the right with zeros."""
    rng = np.random.default_rng(seed)
    valid = np.arange(width) < np.array(lengths)[:, None]

    def draw(low, high):
        return np.where(valid, rng.integers(low, high, valid.shape), 0).astype(np.int32)

    events = Events(
        draw(1, ITEMS + 1),
        np.where(valid, np.cumsum(draw(1, 5000), axis=1), 0).astype(np.int32) if times else None,
        draw(1, types + 1) if types else None,
    )
    return events, valid


def batch_of(lengths, width, **options):
    """A training batch of `width` = T + 1 ids."""
    events, _ = histories(lengths, width, **options)
    fields = {"ids": events.ids, "times": events.times, "types": events.types}
    batch = {name: value for name, value in fields.items() if value is not None}
    return batch | {"index": np.arange(len(lengths), dtype=np.int32)}


def parts(readout, items=ITEMS):
    """A readout without its layout: (vectors, what each item gets beside [..., V]; 0 without)."""
    vectors, own = np.asarray(readout.vectors), readout.own
    added = np.zeros((*vectors.shape[:-1], items + 1))
    if own is not None:
        ids, addends = np.asarray(own.ids), np.asarray(own.addends)
        at = (ids if addends.ndim == 2 else ids[:, None])[..., None] == np.arange(1, items + 1)
        added[..., 1:] = np.sum(np.where(at, addends[..., None], 0), axis=-2)
    return vectors, added


def assert_same_readout(got, expected, **close):
    """Equal vectors and equal addends of every item; own items may stand in other places.

    `atol` is of values of order one: an addend is as exact as the largest of those that it is made of.
    """
    for a, b in zip(parts(got), parts(expected), strict=True):
        atol = close.get("atol", 0) * max(1, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, **(close | {"atol": atol}))


def columns(events, start, stop):
    return jax.tree.map(lambda a: a[:, start:stop], events)


def rows(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


def random_state(method, groups, seed=1):
    """A state with `groups` int [B] groups of order-one memory in use, of users some segments older."""
    rng = np.random.default_rng(seed)
    groups = np.array(groups, np.int32)
    rows_per_user = method.memory.capacity * SLOTS
    memory = rng.normal(0, 1, (len(groups), rows_per_user, method.memory.slot_dim)).astype(
        np.float32
    )
    used = np.arange(rows_per_user) >= rows_per_user - groups[:, None] * SLOTS
    segments = np.where(groups > 0, groups + np.arange(len(groups), dtype=np.int32), 0)
    exact = random_exact(method, segments, rng)
    return State(np.where(used[..., None], memory, 0), groups, segments.astype(np.int32), exact)


def random_exact(method, segments, rng):
    """A table of distinct items per user, some of it unused; empty for users without segments."""
    entries, size = method.memory.entries, method.config.data.segment
    table = np.zeros((3, len(segments), entries), np.int32)
    for user, count in enumerate(segments):
        used = min(entries, count * size, rng.integers(1, entries + 1) if entries else 0)
        table[0, user, :used] = rng.permutation(method.num_items)[:used] + 1
        table[1, user, :used] = -np.sort(-rng.integers(1, 1500, used))
        table[2, user, :used] = rng.integers(0, max(count, 1) * size, used)
    return ExactMemory(*table)


def assert_update_keeps_shapes(method, params, state):
    """`update` returns a state of the same shapes and dtypes, as a scan needs."""
    users, segment = len(state.groups), method.config.data.segment
    events, valid = histories([segment] * users, segment)
    after = jax.eval_shape(method.update, params, state, events, valid)
    described = (jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (after, state))
    assert next(described) == next(described)


def fit(method, batch, steps, learning_rate=1e-2):
    """(mean next-item loss of fresh parameters, of trained ones, the trained parameters): `steps` of
    Adam on this batch alone."""
    optimizer = optax.adam(learning_rate)

    def objective(params, rng):
        terms = method.loss(params, batch, rng)
        weights = method.loss_weights
        return sum(weights[k] * total / weight for k, (total, weight) in terms.items())

    def step(carry, _):
        params, state = carry
        gradient = jax.grad(objective)(params, jax.random.key(1))
        with jax.numpy_dtype_promotion("standard"):  # inside Optax
            updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def train(params):
        carry = (params, optimizer.init(params))
        (params, _), _ = jax.lax.scan(step, carry, length=steps)
        return params

    @jax.jit
    def mean_loss(params):
        total, weight = method.loss(params, batch, None)["ar"]
        return total / weight

    params = jax.jit(method.init)(jax.random.key(0))
    trained = train(params)
    return float(mean_loss(params)), float(mean_loss(trained)), trained


def served_loss(method, params, batch):
    """Mean next-item loss of full windows (R = 1) as they are served: read a segment, then fold it."""
    segment, count = method.config.data.segment, method.config.data.segments
    users = len(batch["ids"])
    valid = np.ones((users, segment), bool)
    read_all, update = jax.jit(method.read_all), jax.jit(method.update)
    state, total = method.init_state(params, users), 0.0
    for h in range(count):
        ids = batch["ids"][:, h * segment : (h + 1) * segment + 1]
        events = Events(ids[:, :-1])
        logits = method.score(params, read_all(params, state, events, valid))[..., 1:]
        log_p = jax.nn.log_softmax(logits, axis=-1)
        total -= np.take_along_axis(np.asarray(log_p), ids[:, 1:, None] - 1, axis=-1).sum()
        state = update(params, state, events, valid)
    return float(total / (users * segment * count))
