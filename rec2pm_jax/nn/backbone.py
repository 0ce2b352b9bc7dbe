"""A stack of identical layers over the tokens of one pass."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn.attention import AttentionDropout, KeyValues, Layout
from rec2pm_jax.nn.cache import InPlaceCache, Rows, rows_of
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.nn.hstu import HSTULayer
from rec2pm_jax.nn.recompute import layer_pass
from rec2pm_jax.nn.sasrec import SASRecLayer
from rec2pm_jax.typing import Array, Params


class Backbone(nn.Module):
    """[B, tokens, D] -> [B, tokens, D]; input dropout, then `layers` layers, no final norm.

    Parameters of all layers are stacked on a leading axis and the stack is a scan; with
    `scan_layers=False` the same parameters run unrolled (for cost reports, or faster small models).

    Attributes:
      norm: N of `HSTULayer`.
      max_distance, num_slot_ids, compute: see `HSTULayer`.
    """

    config: ModelConfig
    norm: float
    max_distance: int
    num_slot_ids: int
    compute: ComputeConfig = ComputeConfig()

    @nn.compact
    def __call__(
        self,
        x: Array,
        layout: Layout,
        rows: Array | None = None,
        kept: KeyValues | None = None,
        keep: int = 0,
    ) -> tuple[Array, KeyValues]:
        """Runs a pass, possibly on top of tokens of an earlier one.

        Args:
          x: [B, tokens, D], without the kept tokens.
          rows: int32 [B], as in `Dropout`, which is off without them.
          kept: keys and values of the layout's first tokens, [layers, B, kept tokens, H, d] each.
          keep: how many of x's first tokens to return keys and values of.

        Returns:
          (outputs [B, tokens, D], `KeyValues` [layers, B, keep, H, d]).
        """
        cfg = self.config
        x = Dropout(cfg.dropout)(x, rows)
        layer = self._layer(name="layers")

        def run(layer, x, layout, kept):
            def once(layer, x, kept):
                return layer(x, layout, rows, kept)

            x, own = layer_pass(once, self.compute, cfg.scan_layers)(layer, x, kept)
            return x, jax.tree.map(lambda a: a[:, :keep], own)

        stack = nn.scan(
            run,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),
            length=cfg.layers,
            unroll=1 if cfg.scan_layers else cfg.layers,
        )
        return stack(layer, x.astype(jnp.dtype(cfg.dtype)), layout, kept)

    def _layer(self, **options) -> nn.Module:
        if self.config.backbone == "sasrec":
            return SASRecLayer(self.config, self.compute, **options)
        sizes = (self.norm, self.max_distance, self.num_slot_ids)
        return HSTULayer(self.config, *sizes, self.compute, **options)

    @nn.nowrap
    def rows(
        self,
        params: Params,
        x: Array,
        layout: Layout,
        kept: KeyValues | None = None,
        *,
        written: Array | None = None,
        only: Rows | None = None,
        dropout: AttentionDropout | None = None,
        scan: bool = False,
    ) -> tuple[Array, KeyValues]:
        """A pass as a function of `params`, whose last layer computes no more rows than are wanted.

        Args:
          params: of this module. x, layout, kept: as in `__call__`.
          written: int32 [B], see `InPlaceCache`; the layout is then one of `rows_of`.
          only: tokens of the layout, the rows that are wanted.
          dropout: randomness of dropout, or None to switch it off. What it draws is not what
            `__call__` draws.
          scan: the layers below the last one, instead of unrolling them: programs stay small.

        Returns:
          (outputs of these rows, else of all of x; `KeyValues` of x, stacked over layers).
        """
        cfg, layer = self.config, self._layer(parent=None)
        keys, numbers = None, None
        if dropout is not None:
            first, *keys = jax.random.split(dropout.key, cfg.layers + 1)
            keys, numbers = jnp.stack(keys), dropout.rows
            x = Dropout(cfg.dropout).apply({}, x, numbers, rngs={"dropout": first})

        def run(x, of_layer, layout=layout, only=None, scanned=False):
            def once(x, params, kept, key):
                if written is not None:
                    kept = InPlaceCache(kept, written)
                rngs = None if key is None else {"dropout": key}
                return layer.apply({"params": params}, x, layout, numbers, kept, only, rngs=rngs)

            return layer_pass(once, self.compute, scanned, jax.checkpoint)(x, *of_layer)

        x, stack = x.astype(jnp.dtype(cfg.dtype)), (params["layers"], kept, keys)
        below, last = (jax.tree.map(lambda a, i=i: a[i], stack) for i in (slice(-1), -1))
        body = functools.partial(run, scanned=scan)
        x, owns = jax.lax.scan(body, x, below, unroll=1 if scan else max(cfg.layers - 1, 1))
        if only is None:
            x, own = run(x, last)
        else:
            x, own = run(x, last, rows_of(layout, only), only.after(layout.first_row))
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), owns, own)
