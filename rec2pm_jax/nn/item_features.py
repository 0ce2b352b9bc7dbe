"""What an item is, added to the row of its id: items without events have vectors, too.

    vector(i) = row[i] + sum_j E[code_ij] / sqrt(codes of i) + W x_i

E embeds hashed values (words of the title, the category, attributes), and W projects the optional
vector x_i, such as a text or image embedding. The sum takes the place of the item table in input and
scoring, so nothing else knows of content. In a training step each row is left out with probability
`ID_DROPOUT`, so that content alone learns to stand for an item. Items without training events have no
row and take no part in training: as negatives they would only learn to score low. As DropoutNet
(Volkovs et al. 2017) does.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.embedding import ITEM_SCALE, TABLE
from rec2pm_jax.typing import Array, Params, PRNGKey

CONTENT = "item_content"  # in params: the weights of this module
ID_DROPOUT = 0.2
_VALUES, _PROJECTION = "value_embedding", "projection"


class ItemContent(NamedTuple):
    """What the items of a dataset are, as `data.item_table.encode_content` gives it.

    Attributes:
      codes: int32 [V, J], hashed values from 1; 0 for none.
      vectors: float32 [V, d], of length 1, or 0 for items without; d = 0 without vectors.
      trained: bool [V], the items with training events; needed for training only.
    """

    codes: Array  # V J
    vectors: Array  # V d
    trained: Array | None = None  # V


def init_content(rng: PRNGKey, params: Params, values: int, content: ItemContent) -> Params:
    """Return fresh parameters with weights for content.

    Args:
      rng: a key.
      params: fresh parameters of a method. Rows of items without training events become 0.
      values: `config.model.item_features`, the number of hashed values.
      content: with `trained`.
    """
    assert content.trained is not None, "training needs to know the items with training events"
    table = jnp.where(content.trained[:, None], params["embedding"][TABLE], 0)
    dim = table.shape[1]
    value_rng, vector_rng = jax.random.split(rng)
    normal = jax.random.truncated_normal
    weights = {_VALUES: ITEM_SCALE * normal(value_rng, -2, 2, (values + 1, dim))}
    if content.vectors.shape[1]:
        shape = (content.vectors.shape[1], dim)
        weights[_PROJECTION] = ITEM_SCALE * normal(vector_rng, -2, 2, shape)
    return {**_with_table(params, table), CONTENT: weights}


def abstract_content(params: Params, values: int, vector_length: int) -> Params:
    """Return the shapes of `init_content`, for abstract parameters of a method.

    Args:
      params: shapes, with an item table.
      values: as for `init_content`.
      vector_length: d, numbers of an item's vector; 0 for none.
    """
    table = params["embedding"][TABLE]

    def init(params: Params) -> Params:
        rows = len(table)
        content = ItemContent(
            jnp.zeros((rows, 1), jnp.int32), jnp.zeros((rows, vector_length)), jnp.ones(rows, bool)
        )
        return init_content(jax.random.key(0), params, values, content)

    return jax.eval_shape(init, params)


def add_content(params: Params, content: ItemContent) -> Params:
    """Return parameters that serve: their item table holds rows and content, and no weights of it.

    Args:
      params: as trained, with a row for each item of `content`.
      content: of the items now, also of new ones.

    Raises:
      UserError: the model was trained on vectors of another length.
    """
    table = params["embedding"][TABLE] + _project(params[CONTENT], content)
    return {k: v for k, v in _with_table(params, table).items() if k != CONTENT}


def add_training_content(params: Params, content: ItemContent, rng: PRNGKey) -> Params:
    """Return the parameters of one training step, see `add_content`; some rows are left out.

    Args:
      params: as trained so far.
      content: with `trained`.
      rng: key of the step.
    """
    assert content.trained is not None, "training needs to know the items with training events"
    rows = params["embedding"][TABLE]
    kept = jax.random.bernoulli(rng, 1 - ID_DROPOUT, (len(rows), 1))
    table = jnp.where(kept, rows, 0) + _project(params[CONTENT], content)
    table = jnp.where(content.trained[:, None], table, 0)
    return {k: v for k, v in _with_table(params, table).items() if k != CONTENT}


def _project(weights: Params, content: ItemContent) -> Array:
    """Return the part of items' vectors that comes from content: float32 [V, D].

    >>> weights = {"value_embedding": jnp.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0]])}
    >>> _project(weights, ItemContent(jnp.array([[0, 0], [1, 0]]), jnp.zeros((2, 0)))).tolist()
    [[0.0, 0.0], [1.0, 0.0]]
    """
    values = weights[_VALUES]
    total = jnp.zeros((len(content.codes), values.shape[1]), values.dtype)
    for codes in jnp.asarray(content.codes).T:  # one column at a time: [V, J, D] may be large
        total = total + jnp.where(codes[:, None] > 0, values[codes], 0)
    count = jnp.sum(jnp.asarray(content.codes) > 0, axis=1, keepdims=True)
    total = total / jnp.sqrt(jnp.maximum(count, 1).astype(total.dtype))
    trained_on = len(weights[_PROJECTION]) if _PROJECTION in weights else 0
    if content.vectors.shape[1] not in (0, trained_on):
        raise UserError(
            f"The items' vectors have {content.vectors.shape[1]} numbers, but the model was trained on "
            f"vectors of {trained_on}; give an item table with those, or without vectors."
        )
    if not content.vectors.shape[1]:
        return total
    return total + content.vectors @ weights[_PROJECTION]


def _with_table(params: Params, table: Array) -> Params:
    return {**params, "embedding": {**params["embedding"], TABLE: table}}
