"""Initialisers of kernels."""

from __future__ import annotations

import jax.numpy as jnp
from flax.typing import Initializer


def scaled_identity(gain: float) -> Initializer:
    """Return an initialiser of kernels as `gain` times the identity, rectangular if need be."""
    return lambda key, shape, dtype=jnp.float32: gain * jnp.eye(shape[0], shape[1], dtype=dtype)
