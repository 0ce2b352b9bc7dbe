"""A stack of identical layers over the tokens of one pass."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.config import ModelConfig
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.nn.hstu import HSTULayer
from rec2pm_jax.nn.sasrec import SASRecLayer
from rec2pm_jax.typing import Array


class Backbone(nn.Module):
    """[B, tokens, D] -> [B, tokens, D]; input dropout, then `layers` layers, no final norm.

    Parameters of all layers are stacked on a leading axis and the stack is a scan; with
    `scan_layers=False` the same parameters run unrolled (for cost reports, or faster small models).

    Attributes:
      norm: N of `HSTULayer`.
      max_distance, num_slot_ids, attention: see `HSTULayer`.
    """

    config: ModelConfig
    norm: float
    max_distance: int
    num_slot_ids: int
    attention: str = "auto"

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
        if cfg.backbone == "sasrec":
            layer = SASRecLayer(cfg, self.attention, name="layers")
        else:
            sizes = (self.norm, self.max_distance, self.num_slot_ids)
            layer = HSTULayer(cfg, *sizes, self.attention, name="layers")

        def run(layer, x, layout, kept):
            x, own = layer(x, layout, rows, kept)
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
