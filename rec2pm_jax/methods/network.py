"""What all neural methods share: embedding, backbone, tied scoring."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.methods.sketch import item_parts
from rec2pm_jax.nn.attention import AttentionDropout, KeyValues, Layout
from rec2pm_jax.nn.backbone import Backbone
from rec2pm_jax.nn.cache import Rows
from rec2pm_jax.nn.catalogue.losses import (
    Positions,
    catalogue_logits,
    loss_chunk_bytes,
    next_item_loss,
    to_item_vectors,
    to_queries,
)
from rec2pm_jax.nn.catalogue.topk import top_k
from rec2pm_jax.nn.embedding import TABLE, EventEmbedding
from rec2pm_jax.typing import PADDING_ID, Array, Batch, Events, Params, PRNGKey

_NEGATIVES = "negatives"  # in params, see `with_step_rows`


def with_step_rows(params: Params, negatives: Array) -> Params:
    """Params whose item table holds the rows of one training step only.

    negatives: int32 [R], the rows among them that every catalogue loss draws its negatives from.
    """
    return {**params, _NEGATIVES: negatives}


def sees_whole_catalogue(params: Params) -> bool:
    """False where the item table holds the rows of one step only."""
    return _NEGATIVES not in params


@dataclasses.dataclass(frozen=True)
class Network:
    """The shared backbone with its tied item table; `params` has keys `embedding` and `backbone`.

    Attributes:
      config: the whole configuration.
      num_items: real items; ids run from 1 to num_items.
      max_positions: learned positions, the longest run of events that any pass numbers.
    """

    config: Config
    num_items: int
    max_positions: int

    @cached_property
    def embedding(self) -> EventEmbedding:
        return EventEmbedding(
            self.config.model, self.num_items, self.max_positions, self.config.item_dim
        )

    @cached_property
    def backbone(self) -> Backbone:
        window = self.config.data.window
        # N is the training window in every pass, see HSTULayer.
        return Backbone(
            self.config.model,
            norm=float(window),
            max_distance=window,
            num_slot_ids=2 * self.config.method.slots,
            compute=self.config.compute,
        )

    def init(self, rng: PRNGKey, layout: Layout, tokens: int) -> Params:
        """Parameters; `layout` describes any pass over `tokens` tokens."""
        embed_rng, stack_rng = jax.random.split(rng)
        one = jnp.zeros((1, 1), jnp.int32)
        types = one if self.config.model.event_types else None
        x = jnp.zeros((1, tokens, self.config.model.dim))
        return {
            "embedding": self.embedding.init(embed_rng, one, one, types)["params"],
            "backbone": self.backbone.init(stack_rng, x, layout)["params"],
        }

    def embed(self, params: Params, events: Events, positions: np.ndarray | Array) -> Array:
        """[B, N, D] event tokens; positions: int32 [1 or B, N], all below `max_positions`.

        Raises:
          ValueError: a position has no learned embedding (a gather would silently take the last).
            Traced positions cannot be checked.
        """
        if isinstance(positions, np.ndarray) and positions.max() >= self.max_positions:
            raise ValueError(
                f"Got {positions.max() + 1} events to read at once, but this method reads at most "
                f"{self.max_positions}: cut them by `plan`."
            )
        return self.embedding.apply(
            {"params": params["embedding"]}, events.ids, positions, events.types
        )

    def run(
        self,
        params: Params,
        x: Array,
        layout: Layout,
        rng: PRNGKey | None = None,
        rows: Array | None = None,
    ) -> Array:
        """The backbone over [B, tokens, D]; dropout is on when an rng and `rows` [B] are given."""
        variables = {"params": params["backbone"]}
        if rng is None:
            return self.backbone.apply(variables, x, layout)[0]
        return self.backbone.apply(variables, x, layout, rows, rngs={"dropout": rng})[0]

    def attention(self, params: Params, x: Array, layout: Layout) -> list[Array]:
        """Attention weights of a pass, per block of `layout`: float32 [layers, B, H, rows, keys]."""
        variables = {"params": params["backbone"]}
        _, found = self.backbone.apply(variables, x, layout, mutable=["intermediates"])
        return list(found["intermediates"]["layers"]["attention"])

    def run_cached(
        self, params: Params, x: Array, layout: Layout, kept: KeyValues, keep: int
    ) -> tuple[Array, KeyValues]:
        """The backbone on top of the kept tokens of earlier passes, see `Backbone`; no dropout."""
        variables = {"params": params["backbone"]}
        return self.backbone.apply(variables, x, layout, kept=kept, keep=keep)

    def run_rows(
        self,
        params: Params,
        x: Array,
        layout: Layout,
        only: Rows,
        rng: PRNGKey | None = None,
        rows: Array | None = None,
    ) -> Array:
        """As `run`, only the rows that are wanted, [B, count, D]: see `Backbone.rows`."""
        dropout = None if rng is None else AttentionDropout(rng, rows)
        options = {
            "only": only,
            "dropout": dropout,
            "scan": self.config.model.scan_layers,
        }
        return self.backbone.rows(params["backbone"], x, layout, **options)[0]

    def serve(self, params: Params, x: Array, layout: Layout, kept=None, **options):
        """The backbone at inference, only the rows that are wanted: see `Backbone.rows`."""
        return self.backbone.rows(params["backbone"], x, layout, kept, **options)

    def score(self, params: Params, vectors: Array, catalogue: Array | None = None) -> Array:
        """[..., W] -> float32 logits [..., V]; the padding column is -inf.

        catalogue: what `catalogue` returns, to prepare the table once for many calls.
        """
        catalogue = self.catalogue(params) if catalogue is None else catalogue
        return catalogue_logits(self.config.loss, vectors, catalogue)

    def catalogue(self, params: Params) -> Array:
        """Item vectors float32 [V, W] whose dot products with prepared outputs are logits."""
        return to_item_vectors(self.config.loss, self.table(params))

    def best(
        self, params: Params, vectors: Array, k: int, catalogue: Array | None = None
    ) -> tuple[Array, Array]:
        """The k highest of `score`: [B, W] -> (float32 [B, k], item ids int32 [B, k]), see `top_k`.

        catalogue: the table as `to_item_vectors` returns it, float32 [V, W], where many calls share it.
        """
        loss, table = self.config.loss, self.table(params)
        queries = to_queries(loss, vectors)
        if catalogue is not None:
            return top_k(queries, catalogue, k, first=1)
        return top_k(queries, table, k, first=1, transform=lambda rows: to_item_vectors(loss, rows))

    def table(self, params: Params) -> Array:
        """Item vectors [V, W]; W is D, or P * D with a sketch of P parts."""
        return params["embedding"][TABLE]

    def parts(self, params: Params, ids: Array) -> Array:
        """What a sketch sums: float32 [..., P, D] for ids int32 [...], see `item_parts`."""
        return item_parts(self.table(params), ids, self.config.method.sketch)

    def with_table(self, params: Params, table: Array) -> Params:
        """Params with another item table."""
        return {**params, "embedding": {**params["embedding"], TABLE: table}}

    def next_item(
        self,
        params: Params,
        vectors: Array,
        targets: Array,
        weights: Array,
        rng: PRNGKey | None,
        rows: Array,
    ) -> tuple[Array, Array]:
        """(sum, weight) of the next-item loss over vectors [B, N, W] and targets, weights [B, N].

        rows: int32 [B], unique within the step: negatives of a position are drawn by its number.
        """
        rng = jax.random.key(0) if rng is None else rng
        length = targets.shape[1]
        numbers = rows[:, None] * length + jnp.arange(length, dtype=jnp.int32)
        positions = Positions(
            vectors.reshape(-1, vectors.shape[-1]),
            targets.reshape(-1),
            weights.reshape(-1),
            numbers.reshape(-1),
        )
        return next_item_loss(
            self.config.loss,
            self.table(params),
            positions,
            rng,
            loss_chunk_bytes(self.config.compute),
            params.get(_NEGATIVES),
        )


def training_events(batch: Batch) -> tuple[Events, Array, Array, Array | None]:
    """Splits a batch into inputs, targets, weights (1 where a target exists) and next-event times.

    Shapes [B, T]; times are None where the batch has none.
    """
    ids, times, types = batch["ids"], batch.get("times"), batch.get("types")
    inputs = Events(
        ids[:, :-1],
        None if times is None else times[:, :-1],
        None if types is None else types[:, :-1],
    )
    targets = ids[:, 1:]
    next_times = None if times is None else times[:, 1:]
    return inputs, targets, (targets != PADDING_ID).astype(jnp.float32), next_times


def segment_rows(rows: Array, count: int) -> Array:
    """Row numbers of `count` segments per row, folded into the batch as `cut` does: [B * count]."""
    return (rows[:, None] * count + jnp.arange(count, dtype=jnp.int32)).reshape(-1)


def cut(x, segment: int, length: int, count: int):
    """Windows [h * segment, h * segment + length) for h < count, folded into the batch.

    x: array [B, T] (or a pytree of such; None stays None) -> [B * count, length].
    """
    index = np.arange(count)[:, None] * segment + np.arange(length)[None]
    return jax.tree.map(lambda a: a[:, index].reshape(-1, length), x)
