"""The paper's size through `eval_shape`, compute dtypes, and every method overfits eight users."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.configs import paper_merrec_hstu
from rec2pm_jax.config import Config, DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.typing import Events, Readout
from tests.helpers.methods import batch_of, fit, histories, make, random_state, served_loss

S, K, C, D, V = 200, 5, 4, 64, 20_000


def paper_method(name="rec2pm"):
    config = from_dict(paper_merrec_hstu.get_config().to_dict())
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, name=name))
    return make_method(config, V)


def shape_of(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)


def count(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_parameters_and_shapes_at_paper_size():
    method, batch = paper_method(), 8
    params = jax.eval_shape(method.init, jax.random.key(0))
    # W: D x 4 D without bias; W_o: D x D and its bias.
    assert count(params["backbone"]) == 16 * (4 * D * D + D * D + D) == 328_704
    assert count(params["embedding"]) == (V + 1) * D + S * D == 1_292_864
    assert params["memory"]["query_embedding"].shape == (C, D)
    # Adapter and recall; embeddings of queries, slots and ages; what is kept of each slot, and a gain.
    assert count(params["memory"]) == D * D + C * D * D + 2 * C * D + 16 * D + C + 1 == 22_021

    state = jax.eval_shape(lambda p: method.init_state(p, batch), params)
    assert state.memory.shape == (batch, C, D) and state.groups.shape == (batch,)
    segment, valid = Events(shape_of(batch, S)), shape_of(batch, S, dtype=bool)
    assert jax.eval_shape(method.update, params, state, segment, valid) == state
    read = jax.eval_shape(method.read, params, state, segment, valid)
    assert read == Readout(shape_of(batch, D, dtype=jnp.float32), None)
    every = jax.eval_shape(method.read_all, params, state, segment, valid)
    assert every == Readout(shape_of(batch, S, D, dtype=jnp.float32), None)
    assert jax.eval_shape(method.score, params, read).shape == (batch, V + 1)
    history = Events(shape_of(batch, K * S)), shape_of(batch, K * S, dtype=bool)
    assert jax.eval_shape(method.compress, params, *history) == state

    training = {"ids": shape_of(batch, K * S + 1), "index": shape_of(batch)}
    loss = jax.eval_shape(lambda p, b: method.loss(p, b, None), params, training)
    assert {"ar", "consistency"} <= set(loss)
    assert {(x.shape, str(x.dtype)) for x in jax.tree.leaves(loss)} == {((), "float32")}


@pytest.mark.parametrize(("name", "width"), [("tok_serial", D), ("kv_mask", 2 * 16 * D)])
def test_other_families_at_paper_size(name, width):
    method, batch = paper_method(name), 8
    params = jax.eval_shape(method.init, jax.random.key(0))
    backbone = jax.eval_shape(paper_method().init, jax.random.key(0))["backbone"]
    assert params["backbone"] == backbone
    state = jax.eval_shape(lambda p: method.init_state(p, batch), params)
    assert state.memory.shape == (batch, C, width)
    per_user = math.prod(state.memory.shape[1:]) * state.memory.dtype.itemsize
    assert per_user == {"tok_serial": 1024, "kv_mask": 32_768}[name]
    segment, valid = Events(shape_of(batch, S)), shape_of(batch, S, dtype=bool)
    assert jax.eval_shape(method.update, params, state, segment, valid) == state
    every = jax.eval_shape(method.read_all, params, state, segment, valid)
    assert every.vectors.shape == (batch, S, D)
    training = {"ids": shape_of(batch, K * S + 1), "index": shape_of(batch)}
    loss = jax.eval_shape(lambda p, b: method.loss(p, b, None), params, training)
    assert set(loss) == set(method.loss_weights) == {"ar"}


def test_full_and_recent_differ_in_what_they_read():
    assert paper_method("full").read_length == K * S
    assert paper_method("recent").read_length == paper_method().read_length == S
    params = jax.eval_shape(paper_method("full").init, jax.random.key(0))
    assert params["embedding"]["position_embedding"].shape == (K * S, D)


def test_bfloat16_compute():
    """Parameters, memory, scores and losses stay float32."""
    exact, params = make()
    with jax.numpy_dtype_promotion("standard"):  # Flax's LayerNorm mixes dtypes inside
        half, _ = make(model=(("dtype", "bfloat16"),))
    params = jax.tree.map(lambda a: a / 2, params)
    events, valid = histories([3, 2], 3)
    state, batch = random_state(exact, [1, 0]), batch_of([10, 7], 10)

    def everything(method):
        with jax.numpy_dtype_promotion("standard"):
            return jax.jit(
                lambda p, s, e, v, b: (
                    method.update(p, s, e, v).memory,
                    method.read(p, s, e, v).vectors,
                    method.read(p, s, e, v).own.addends,
                    method.loss(p, b, None)["ar"],
                )
            )(params, state, events, valid, batch)

    for a, b in zip(*map(jax.tree.leaves, map(everything, (exact, half))), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.2)


# --- overfit ---

USERS, LENGTH = 8, 10  # ids per user: K = 3 segments of 3 inputs and the last target


def eight_walks():
    """Every user walks over items of its own, so the next item follows from the last one."""
    rng = np.random.default_rng(0)
    items = rng.permutation(USERS * LENGTH).reshape(USERS, LENGTH) + 1
    return {"ids": items.astype(np.int32), "index": np.arange(USERS, dtype=np.int32)}


OVERFIT = {
    "full": dict(name="full"),
    "recent": dict(name="recent"),
    "rec2pm_o": dict(name="rec2pm"),
    "rec2pm_a": dict(name="rec2pm", memory="append"),
    "tok_serial_o": dict(name="tok_serial"),
    "tok_serial_a": dict(name="tok_serial", memory="append"),
    "kv_mask_o": dict(name="kv_mask"),
    "kv_mask_a": dict(name="kv_mask", memory="append"),
}


SLOW = {
    ("rec2pm_a", "hstu"),
    ("tok_serial_o", "hstu"),
    ("recent", "sasrec"),
    ("recent", "hstu"),
    ("full", "hstu"),
    ("rec2pm_o", "hstu"),
    ("rec2pm_a", "sasrec"),
    ("tok_serial_o", "sasrec"),
    ("tok_serial_a", "sasrec"),
    ("tok_serial_a", "hstu"),
    ("kv_mask_o", "sasrec"),
    ("kv_mask_o", "hstu"),
    ("kv_mask_a", "sasrec"),
    ("kv_mask_a", "hstu"),
}
CASES = [
    pytest.param(name, backbone, marks=[pytest.mark.slow] * ((name, backbone) in SLOW))
    for name in OVERFIT
    for backbone in ("sasrec", "hstu")
]


@pytest.mark.parametrize(("name", "backbone"), CASES)
def test_overfits_eight_users(name, backbone):
    config = Config(
        data=DataConfig(segment=3, segments=3),
        model=ModelConfig(
            backbone=backbone,
            layers=2 if name.startswith("kv_mask") else 1,
            dim=32,
            dropout=0.0,
            relative_bias="position" if backbone == "hstu" else "none",
        ),
        method=MethodConfig(slots=2, max_groups=2, **OVERFIT[name]),
    )
    method, batch = make_method(config, USERS * LENGTH), eight_walks()
    before, after, params = fit(method, batch, steps=200)
    if config.method.name == "rec2pm":  # its loss without a key reads other memories than serving
        after = served_loss(method, params, batch)
    assert before > 3  # log(80) = 4.4
    assert after < 0.1
