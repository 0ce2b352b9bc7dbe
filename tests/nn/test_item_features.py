"""Content in item vectors, against loops; what is left out in training gets no gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.item_features import (
    CONTENT,
    ItemContent,
    abstract_content,
    add_content,
    add_training_content,
    init_content,
)

DIM, VALUES = 4, 6
CONTENTS = ItemContent(
    jnp.array([[0, 0], [1, 3], [3, 0], [0, 0], [6, 2]], jnp.int32),
    jnp.array([[0, 0, 0], [1, 0, 0], [0, 0.6, 0.8], [0, 0, 0], [0, 0, 1]], jnp.float32),
    jnp.array([True, True, False, True, True]),
)


def fresh(content: ItemContent = CONTENTS) -> dict:
    table = jax.random.normal(jax.random.key(1), (len(content.codes), DIM))
    params = {"embedding": {"item_embedding": table}, "other": jnp.ones(2)}
    return init_content(jax.random.key(0), params, VALUES, content)


def slow_content(weights: dict) -> np.ndarray:
    found = np.zeros((len(CONTENTS.codes), DIM))
    for item, codes in enumerate(np.asarray(CONTENTS.codes)):
        real = [c for c in codes if c]
        for code in real:
            found[item] += np.asarray(weights["value_embedding"])[code] / len(real) ** 0.5
        found[item] += np.asarray(CONTENTS.vectors)[item] @ np.asarray(weights["projection"])
    return found


@pytest.mark.smoke
def test_content_is_added_to_rows():
    params = fresh()
    rows = np.asarray(params["embedding"]["item_embedding"])
    assert not rows[2].any() and rows[[0, 1, 3, 4]].all()  # an item without events has no row
    served = add_content(params, CONTENTS)
    assert served.keys() == {"embedding", "other"}
    table = served["embedding"]["item_embedding"]
    np.testing.assert_allclose(table, rows + slow_content(params[CONTENT]), rtol=1e-5, atol=1e-6)


def test_training_leaves_out_rows_by_the_key_and_untrained_items_always():
    params = fresh()
    rows = np.asarray(params["embedding"]["item_embedding"])
    content = slow_content(params[CONTENT])
    left_out = 0
    for seed in range(60):
        key = jax.random.key(seed)
        table = np.asarray(
            add_training_content(params, CONTENTS, key)["embedding"]["item_embedding"]
        )
        again = add_training_content(params, CONTENTS, key)["embedding"]["item_embedding"]
        np.testing.assert_array_equal(table, again)
        assert not table[2].any()
        for item in (1, 3, 4):
            whole, alone = rows[item] + content[item], content[item]
            dropped = np.allclose(table[item], alone, atol=1e-6)
            assert dropped or np.allclose(table[item], whole, atol=1e-6)
            left_out += dropped
    assert 0.1 < left_out / 180 < 0.3


def test_untrained_items_and_rows_left_out_get_no_gradient():
    params = fresh()

    def total(params, key):
        table = add_training_content(params, CONTENTS, key)["embedding"]["item_embedding"]
        return jnp.sum(jnp.sin(table))

    for seed in range(5):
        gradient = jax.grad(total)(params, jax.random.key(seed))
        table = add_training_content(params, CONTENTS, jax.random.key(seed))
        rows, kept = (
            gradient["embedding"]["item_embedding"],
            np.asarray(table["embedding"]["item_embedding"]),
        )
        content = slow_content(params[CONTENT])
        for item in range(5):
            alone = item == 2 or np.allclose(kept[item], content[item], atol=1e-6)
            assert bool(jnp.any(rows[item] != 0)) != alone
        # Value 3 is of item 1 too; values 4 and 5 are of nobody.
        values = gradient[CONTENT]["value_embedding"]
        assert jnp.any(values[3] != 0) and not jnp.any(values[jnp.array([4, 5])] != 0)


def test_vectors_of_another_length_are_refused_and_none_are_taken():
    params = fresh()
    with pytest.raises(UserError, match="vectors have 2 numbers, .* trained on vectors of 3"):
        add_content(params, CONTENTS._replace(vectors=CONTENTS.vectors[:, :2]))
    without = add_content(params, CONTENTS._replace(vectors=CONTENTS.vectors[:, :0]))
    assert jnp.isfinite(without["embedding"]["item_embedding"]).all()


def test_shapes_of_content():
    plain = {"embedding": {"item_embedding": jax.ShapeDtypeStruct((5, DIM), jnp.float32)}}
    for vectors in (CONTENTS.vectors, CONTENTS.vectors[:, :0]):
        made = fresh(CONTENTS._replace(vectors=vectors))
        found = abstract_content(plain, VALUES, vectors.shape[1])
        assert jax.tree.map(jnp.shape, made[CONTENT]) == jax.tree.map(jnp.shape, found[CONTENT])
