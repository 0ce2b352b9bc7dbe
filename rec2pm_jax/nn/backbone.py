"""A stack of identical layers over the tokens of one pass."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.config import ComputeConfig, ModelConfig
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.cache import Placed, rows_of
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
    def serve(
        self,
        params: Params,
        x: Array,
        layout: Layout,
        kept: KeyValues | None = None,
        *,
        written: Array | None = None,
        only: tuple[Array, int] | None = None,
    ) -> tuple[Array, KeyValues]:
        """A pass at inference: no dropout, layers unrolled, and no more rows than are wanted.

        Args:
          params: of this module. x, layout, kept: as in `__call__`.
          written: int32 [B], see `Placed`; the layout is then one of `rows_of`.
          only: (int32 [B] first token, how many): the rows to return, each user's own. The last layer
            computes no others.

        Returns:
          (outputs of these rows, else of all of x; `KeyValues` of x, stacked over layers).
        """
        layer = self._layer(parent=None)
        x = x.astype(jnp.dtype(self.config.dtype))
        owns = []
        for number in range(self.config.layers):

            def run(x, layout, kept, number=number):
                of_layer = jax.tree.map(lambda a: a[number], params["layers"])
                return layer.apply({"params": of_layer}, x, layout, None, kept)

            before = None if kept is None else jax.tree.map(lambda a: a[number], kept)  # noqa: B023
            if written is not None:
                before = Placed(before, written)
            inputs, (x, own) = x, run(x, layout, before)
            owns.append(own)
        if only is not None:  # the last layer's outputs above are not used, so never computed
            first, count = only
            seen = own if before is None else before.before(own)
            index = first[:, None] - layout.blocks[0].row_start + jnp.arange(count, dtype=jnp.int32)
            inputs = jnp.take_along_axis(inputs, index[:, :, None], axis=1)
            x, _ = run(inputs, rows_of(layout, first, count), seen)
        return x, jax.tree.map(lambda *a: jnp.stack(a), *owns)
