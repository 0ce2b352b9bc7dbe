"""Event embeddings against their formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.embedding import EventEmbedding
from rec2pm_jax.nn.gaps import GAPS

DIM = 8


def test_event_embedding_is_its_formula():
    config = ModelConfig(dim=DIM, event_types=3)
    module = EventEmbedding(config, num_items=6, max_positions=4)
    ids, types = jnp.array([[1, 6, 2]], jnp.int32), jnp.array([[3, 1, 2]], jnp.int32)
    places = jnp.arange(3, dtype=jnp.int32)[None]
    params = module.init(jax.random.key(0), ids, places, types)
    p = params["params"]
    assert p["item_embedding"].shape == (7, DIM) and p["type_embedding"].shape == (4, DIM)
    expected = (p["item_embedding"][ids] + p["type_embedding"][types]) * DIM**0.5
    expected = expected + p["position_embedding"][:3]
    np.testing.assert_allclose(module.apply(params, ids, places, types), expected, rtol=1e-6)


def test_the_time_to_the_query_is_embedded():
    """One more row stands for a query time that is not known. All start at zero."""
    config = ModelConfig(dim=DIM, use_times=True)
    module = EventEmbedding(config, num_items=6, max_positions=4)
    ids, gaps = jnp.array([[1, 6, 2]], jnp.int32), jnp.array([[0, GAPS - 1, GAPS]], jnp.int32)
    places = jnp.arange(3, dtype=jnp.int32)[None]
    params = module.init(jax.random.key(0), ids, places, None, gaps)
    start = params["params"]["gap_embedding"]
    assert start.shape == (GAPS + 1, DIM) and not np.any(start)
    before = module.apply(params, ids, places, None, gaps)
    rows = np.random.default_rng(0).normal(size=start.shape).astype(np.float32)
    params = {"params": params["params"] | {"gap_embedding": rows}}
    after = module.apply(params, ids, places, None, gaps)
    np.testing.assert_allclose(after - before, rows[np.array([[0, -2, -1]])], atol=1e-6)


def test_types_are_optional():
    config = ModelConfig(dim=DIM)
    ids = jnp.array([[1, 1]], jnp.int32)
    module = EventEmbedding(config, num_items=6, max_positions=4)
    params = module.init(jax.random.key(0), ids, jnp.zeros_like(ids))
    assert set(params["params"]) == {"item_embedding", "position_embedding"}
