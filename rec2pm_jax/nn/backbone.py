"""A stack of identical layers over the tokens of one pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.cache import InPlaceCache, Rows, rows_of
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.nn.recompute import layer_pass
from rec2pm_jax.nn.registry import BACKBONES, LayerSpec
from rec2pm_jax.typing import Array, Params, PRNGKey

SCAN_LAYERS = True  # False unrolls all layers: XLA's cost reports count the body of a loop once


@dataclasses.dataclass(frozen=True)
class Backbone:
    """[B, tokens, D] -> [B, tokens, D]: dropout on the input, then `layers` layers, no final norm.

    `params` is {"layers": ..}, with the parameters of all layers stacked on a leading axis.

    Attributes:
      spec: of each layer.
    """

    spec: LayerSpec

    def init(self, rng: PRNGKey, x: Array, layout: Layout) -> Params:
        """Return fresh parameters; x [B, tokens, D] and `layout` describe any pass."""
        x = x.astype(jnp.dtype(self.spec.config.dtype))
        return _Stack(self.spec).init(rng, x, layout)["params"]

    def __call__(
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
        """Run a pass.

        Args:
          params: what `init` returned.
          x: [B, tokens, D], without the tokens that are in the cache.
          layout: who sees whom. With an `InPlaceCache` it is one that `rows_of` returned.
          rng, rows: a key and int32 [B] row numbers for dropout; without a key it is off.
          cache: keys and values of tokens of earlier passes, each [layers, B, tokens, H, d].
          wanted: the tokens whose outputs are wanted; the last layer computes no others.
          unroll: inline all layers. Programs get longer, and faster for a few tokens.

        Returns:
          (outputs [B, wanted tokens, D], keys and values of x [layers, B, tokens, H, d]).
        """
        config, compute = self.spec.config, self.spec.compute
        layer: Any = _new_layer(self.spec, parent=None)
        unroll = unroll or not SCAN_LAYERS
        kept, first = cache if isinstance(cache, InPlaceCache) else (cache, None)
        keys = None
        if rng is not None:
            input_key, *layer_keys = jax.random.split(rng, config.layers + 1)
            keys = jnp.stack(layer_keys)
            drop: Any = Dropout(config.dropout)
            x = drop.apply({}, x, rows, rngs={"dropout": input_key})

        def run(
            x: Array, stacked: Any, layout: Layout, wanted: Rows | None, scanned: bool
        ) -> tuple[Array, KeyValues]:
            def once(
                x: Array, params: Params, kept: Any, key: PRNGKey | None
            ) -> tuple[Array, KeyValues]:
                own = kept if first is None else InPlaceCache(kept, first)
                rngs = None if key is None else {"dropout": key}
                numbers = None if key is None else rows
                return layer.apply({"params": params}, x, layout, numbers, own, wanted, rngs=rngs)

            return layer_pass(once, compute, scanned)(x, *stacked)

        def run_stack(x: Array, stacked: Any, count: int) -> tuple[Array, KeyValues]:
            def body(x: Array, of_layer: Any) -> tuple[Array, KeyValues]:
                return run(x, of_layer, layout, None, scanned=not unroll)

            return jax.lax.scan(body, x, stacked, unroll=max(count, 1) if unroll else 1)

        x, stacked = x.astype(jnp.dtype(config.dtype)), (params["layers"], kept, keys)
        if wanted is None:
            return run_stack(x, stacked, config.layers)
        below, last = (jax.tree.map(lambda a, i=i: a[i], stacked) for i in (slice(-1), -1))
        x, owns = run_stack(x, below, config.layers - 1)
        of_last = rows_of(layout, wanted), wanted.after(layout.first_row)
        x, own = run(x, last, *of_last, scanned=False)
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), owns, own)

    def attention_weights(self, params: Params, x: Array, layout: Layout) -> list[Array]:
        """Return the attention weights of a pass without dropout.

        Returns:
          A float32 array [layers, B, H, rows, keys] for each block of `layout`.
        """
        layer = _new_layer(self.spec, parent=None)

        def body(x: Array, params: Params) -> tuple[Array, list[Array]]:
            (x, _), found = layer.apply(
                {"params": params}, x, layout, None, mutable=["intermediates"]
            )
            return x, list(found["intermediates"]["attention"])

        return jax.lax.scan(body, x.astype(jnp.dtype(self.spec.config.dtype)), params["layers"])[1]


def _new_layer(spec: LayerSpec, **options: Any) -> nn.Module:
    return BACKBONES[spec.config.backbone].build(spec, **options)


class _Stack(nn.Module):
    """Initialises the parameters of all layers, stacked."""

    spec: LayerSpec

    @nn.compact
    def __call__(self, x: Array, layout: Layout) -> Array:
        def run(layer: nn.Module, x: Array, layout: Layout) -> tuple[Array, None]:
            return layer(x, layout, None)[0], None

        stack = nn.scan(
            run,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.spec.config.layers,
        )
        return stack(_new_layer(self.spec, name="layers"), x, layout)[0]
