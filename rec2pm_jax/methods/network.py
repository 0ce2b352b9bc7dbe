"""What all methods share: the event embedding, the backbone, and scoring with the tied item table."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods.windows import Window
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.backbone import Backbone
from rec2pm_jax.nn.cache import InPlaceCache, Rows
from rec2pm_jax.nn.catalogue.filters import NO_FILTER, ItemFilter, rank_candidates
from rec2pm_jax.nn.catalogue.losses import (
    Positions,
    catalogue_logits,
    loss_chunk_bytes,
    next_item_loss,
    to_item_vectors,
    to_queries,
)
from rec2pm_jax.nn.catalogue.own_items import (
    combine_own,
    flatten_own,
    merge_own,
)
from rec2pm_jax.nn.catalogue.topk import top_k
from rec2pm_jax.nn.embedding import TABLE, EventEmbedding
from rec2pm_jax.nn.registry import LayerSpec
from rec2pm_jax.typing import Array, OwnItems, Params, PRNGKey, Readout

_to_item_vectors = jax.jit(to_item_vectors)  # of a whole table, without large arrays in between
_NEGATIVES = "negatives"  # in params, see `with_step_rows`


def with_step_rows(params: Params, negatives: Array) -> Params:
    """Return params whose item table holds the rows of one training step only.

    Args:
      params: with that table.
      negatives: int32 [R], the rows among them that every catalogue loss draws its negatives from.
    """
    return {**params, _NEGATIVES: negatives}


@dataclasses.dataclass(frozen=True)
class Network:
    """The shared backbone with its tied item table; `params` has keys `embedding` and `backbone`.

    Attributes:
      config: the whole configuration.
      num_items: real items; ids run from 1 to num_items.
      max_positions: learned positions: the most events that a pass numbers in one segment.
    """

    config: Config
    num_items: int
    max_positions: int

    def __post_init__(self) -> None:
        self.backbone.new_layer()  # refuses an unknown backbone, and fields that it does not support

    @cached_property
    def embedding(self) -> EventEmbedding:
        """The module that embeds events."""
        return EventEmbedding(self.config.model, self.num_items, self.max_positions)

    @cached_property
    def backbone(self) -> Backbone:
        """The stack of layers."""
        config, window = self.config, self.config.data.window
        spec = LayerSpec(
            config.model,
            score_norm=float(config.model.score_norm or window),
            max_distance=window,
            num_slot_ids=2 * config.method.slots,
            compute=config.compute,
        )
        return Backbone(spec)

    def init(self, rng: PRNGKey, layout: Layout) -> Params:
        """Return fresh parameters; `layout` describes any pass over one token."""
        embed_rng, backbone_rng = jax.random.split(rng)
        one = jnp.zeros((1, 1), jnp.int32)
        types = one if self.config.model.event_types else None
        gaps = one if self.config.model.use_times else None
        x = jnp.zeros((1, 1, self.config.model.dim))
        return {
            "embedding": self.embedding.init(embed_rng, one, one, types, gaps)["params"],
            "backbone": self.backbone.init(backbone_rng, x, layout),
        }

    def embed(self, params: Params, window: Window, positions: np.ndarray | Array) -> Array:
        """Embed the events of a window: [B, N, D].

        Args:
          params: of the method.
          window: N events of each user.
          positions: int32 [1 or B, N], all below `max_positions`.

        Raises:
          ValueError: a position has no learned embedding (a gather would silently take the last).
            Traced positions cannot be checked.
        """
        if isinstance(positions, np.ndarray) and positions.max() >= self.max_positions:
            raise ValueError(
                f"Got {positions.max() + 1} events to read at once, but this method reads at most "
                f"{self.max_positions}: cut them by `plan`."
            )
        embedding: Any = self.embedding  # Flax does not say what `apply` returns
        events, gaps = window.events, window.gaps() if self.config.model.use_times else None
        variables = {"params": params["embedding"]}
        return embedding.apply(variables, events.ids, positions, events.types, gaps)

    def run(
        self,
        params: Params,
        x: Array,
        layout: Layout,
        *,
        rng: PRNGKey | None = None,
        rows: Array | None = None,
        cache: KeyValues | InPlaceCache | None = None,
        wanted: Rows | None = None,
        unroll: bool = False,
    ) -> tuple[Array, KeyValues]:
        """Run the backbone over [B, tokens, D]; arguments and results are those of `Backbone`."""
        return self.backbone(
            params["backbone"],
            x,
            layout,
            rng=rng,
            rows=rows,
            cache=cache,
            wanted=wanted,
            unroll=unroll,
        )

    def attention_weights(self, params: Params, x: Array, layout: Layout) -> list[Array]:
        """Return the weights of a pass, see `Backbone.attention_weights`."""
        return self.backbone.attention_weights(params["backbone"], x, layout)

    def catalogue(self, params: Params) -> Array:
        """Prepare the item table for scoring: float32 [V, D].

        The dot product of a row with a prepared output is a logit.
        """
        return _to_item_vectors(self.table(params))

    def score(self, params: Params, readout: Readout, catalogue: Array | None = None) -> Array:
        """Score all items: float32 logits [..., V]; the padding column is -inf.

        Args:
          params: of the method.
          readout: of a read, vectors [..., D].
          catalogue: what `catalogue` returned, to prepare the table once for many calls.
        """
        catalogue = self.catalogue(params) if catalogue is None else catalogue
        return catalogue_logits(self.config.loss, readout, catalogue)

    def best(
        self,
        params: Params,
        readout: Readout,
        k: int,
        catalogue: Array | None = None,
        rule: ItemFilter = NO_FILTER,
    ) -> tuple[Array, Array]:
        """Return the k highest scores and their items, best first; see `Method.best`."""
        queries, own = to_queries(self.config.loss, readout.vectors), readout.own
        table = self.table(params) if catalogue is None else catalogue
        transform = to_item_vectors if catalogue is None else _same
        if rule.candidates is not None:
            return rank_candidates(queries, transform(table[rule.candidates]), rule, own, k)
        scores, ids = top_k(
            queries,
            table,
            k,
            first=1,
            allowed=rule.allows if rule.blocked is not None else None,
            transform=transform,
            denied=rule.deny(own),  # own items come in below, with their addends
        )
        if own is None:
            return scores, ids
        own_scores = jnp.einsum("qd,qjd->qj", queries, transform(table[own.ids]))
        return merge_own(scores, ids, own, rule.drop(own_scores, own.ids), k)

    def queries(self, readout: Readout) -> Readout:
        """Return what an index of `catalogue` is searched with.

        Args:
          readout: of a read, vectors [B, D].

        Returns:
          Vectors float32 [B, D] whose dot products with `catalogue` are logits, and the own items
          with each item of a user once.
        """
        own = None if readout.own is None else combine_own(readout.own)
        return Readout(to_queries(self.config.loss, readout.vectors), own)

    def table(self, params: Params) -> Array:
        """Return the item vectors [V, D]."""
        return params["embedding"][TABLE]

    def item_vectors(self, params: Params, ids: Array) -> Array:
        """Return the unit vectors of items, int32 [...], as `catalogue` prepares them: [..., D]."""
        return to_item_vectors(self.table(params)[ids])

    def with_table(self, params: Params, table: Array) -> Params:
        """Return params with another item table."""
        return {**params, "embedding": {**params["embedding"], TABLE: table}}

    def next_item(
        self,
        params: Params,
        readout: Readout,
        targets: Array,
        weights: Array,
        rng: PRNGKey | None,
        rows: Array,
    ) -> tuple[Array, Array]:
        """Return (sum, weight) of the next-item loss L_AR.

        Args:
          params: of the method.
          readout: vectors [B, N, D].
          targets, weights: [B, N].
          rng: key of the sampled negatives; None takes a fixed one.
          rows: int32 [B], unique within the step: negatives of a position are drawn by its number.
        """
        rng = jax.random.key(0) if rng is None else rng
        length = targets.shape[1]
        numbers = rows[:, None] * length + jnp.arange(length, dtype=jnp.int32)
        own = readout.own
        if own is not None:
            sampled = self.config.loss.negatives is not None
            own = self._candidates(own) if sampled else flatten_own(own)
        positions = Positions(
            readout.vectors.reshape(-1, readout.vectors.shape[-1]),
            targets.reshape(-1),
            weights.reshape(-1),
            numbers.reshape(-1),
            own,
        )
        return next_item_loss(
            self.config.loss,
            self.table(params),
            positions,
            rng,
            loss_chunk_bytes(self.config.compute),
            params.get(_NEGATIVES),
        )

    def _candidates(self, own: OwnItems) -> OwnItems:
        """Return own items as `Positions` takes them: ids [B, J] once each, addends [B * N, J].

        An item that only comes after a row is no candidate of a sampled softmax there: a negative
        beside the target that is known to be of interest would be pushed away.
        """
        ids, addends = combine_own(own)
        if self.config.model.repeat_head:
            rows, count = addends.shape[1:]
            place = jnp.arange(count) - (count - rows)  # the raw events are the last N own items
            seen = place <= jnp.arange(rows)[:, None]
            addends = jnp.where(seen, addends, -jnp.inf)
        return OwnItems(ids, addends.reshape(-1, addends.shape[-1]))


def _same(rows: Array) -> Array:
    """Return rows that are prepared already."""
    return rows
