"""The layer of a linear recurrent unit (Orvieto et al. 2023), as LRURec uses it (Yue et al. 2024)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import KeyValues, Layout
from rec2pm_jax.nn.cache import InPlaceCache, Rows
from rec2pm_jax.nn.dropout import Dropout
from rec2pm_jax.nn.registry import LayerSpec, register_backbone
from rec2pm_jax.typing import Array

RADII = 0.8, 0.99  # of the initial eigenvalues
EPSILON = 1e-6


@register_backbone("lru", reads=())
class LRULayer(nn.Module):
    """h_t = a * h_{t-1} + g * (B LN(x_t)); z = x + Drop(Re(C h)); y = z + Drop(W2 gelu(W1 LN(z))).

    `a` is a vector of D complex numbers inside the unit circle, and g = sqrt(1 - |a|^2). The pass runs
    over all tokens in their order: the layer is for passes that are causal over events. The hidden
    state takes the place of keys (real part) and values (imaginary part), so a pass resumes from the
    last cached token.
    """

    spec: LayerSpec

    def __post_init__(self) -> None:
        if self.spec.config.relative_bias != "none":
            raise UserError("config.model.relative_bias is for config.model.backbone=hstu.")
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Array,  # B tokens D
        layout: Layout,
        rows: Array | None,  # B
        cache: KeyValues | InPlaceCache | None = None,
        wanted: Rows | None = None,
    ) -> tuple[Array, KeyValues]:
        """Apply the layer; arguments and results are those of `SASRecLayer`."""
        if layout.num_slots > 1:
            raise UserError(
                "config.model.backbone=lru has no memory tokens: use config.method.name="
                "linear_recurrence, full or recent."
            )
        config = self.spec.config
        heads, dim = (config.heads, config.key_dim), config.heads * config.key_dim
        dtype = jnp.dtype(config.dtype)
        layer_norm = partial(nn.LayerNorm, epsilon=EPSILON, dtype=dtype)

        def drop(x: Array) -> Array:
            return Dropout(config.dropout)(x, rows)

        log_rate = self.param("log_rate", _initial_log_rate, (dim,))
        phase = self.param("phase", nn.initializers.uniform(2 * jnp.pi), (dim,))
        decay = jnp.exp(-jnp.exp(log_rate))
        eigenvalues = jax.lax.complex(decay * jnp.cos(phase), decay * jnp.sin(phase))
        gain = jnp.sqrt(jnp.maximum(1 - decay**2, 1e-6))
        scaled = nn.initializers.normal((2 * config.dim) ** -0.5)
        z = layer_norm(name="input_norm")(x)
        parts = nn.Dense(2 * dim, kernel_init=scaled, use_bias=False, dtype=dtype, name="input")(z)
        real, imaginary = jnp.split(parts.astype(jnp.float32), 2, axis=-1)
        inputs = jax.lax.complex(gain * real, gain * imaginary)
        start = _last_state(cache, x.shape[0], dim)
        hidden = _recur(eigenvalues, inputs, start)
        own = KeyValues(
            *(part.reshape(*part.shape[:2], *heads) for part in (hidden.real, hidden.imag))
        )
        if wanted is not None:
            x, hidden = wanted.of(x), wanted.of(hidden)
        both = jnp.concatenate([hidden.real, hidden.imag], axis=-1).astype(dtype)
        z = x + drop(nn.Dense(config.dim, dtype=dtype, name="output")(both))
        f = nn.gelu(
            nn.Dense(4 * config.dim, dtype=dtype, name="ffn_in")(layer_norm(name="ffn_norm")(z))
        )
        return z + drop(nn.Dense(config.dim, dtype=dtype, name="ffn_out")(drop(f))), own


def _recur(eigenvalues: Array, inputs: Array, start: Array) -> Array:
    """Return h_t = eigenvalues * h_{t-1} + inputs_t for all t, in parallel: complex64 [B, T, n].

    Args:
      eigenvalues: complex64 [n].
      inputs: complex64 [B, T, n].
      start: complex64 [B, n], the state before the first.
    """

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] * right[0], right[0] * left[1] + right[1]

    inputs = inputs.at[:, 0].add(eigenvalues * start)
    powers = jnp.broadcast_to(eigenvalues, inputs.shape)
    return jax.lax.associative_scan(combine, (powers, inputs), axis=1)[1]


def _last_state(cache: KeyValues | InPlaceCache | None, batch: int, dim: int) -> Array:
    """Return the hidden state before the first token of a pass: complex64 [B, dim]."""
    if cache is None:
        return jnp.zeros((batch, dim), jnp.complex64)
    if isinstance(cache, InPlaceCache):
        before = (cache.first - 1)[:, None, None, None]
        parts = [jnp.take_along_axis(part, before, axis=1)[:, 0] for part in cache.kept]
    else:
        parts = [part[:, -1] for part in cache]
    return jax.lax.complex(*(part.astype(jnp.float32).reshape(batch, dim) for part in parts))


def _initial_log_rate(key: Array, shape: tuple[int, ...]) -> Array:
    """Draw log(-log |a|) so that |a| is uniform in the ring between RADII."""
    low, high = RADII
    squared = jax.random.uniform(key, shape, minval=low**2, maxval=high**2)
    return jnp.log(-0.5 * jnp.log(squared))
