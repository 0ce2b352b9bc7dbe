"""The rate that utilisation is measured against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from launch.benchmarks.case import Work

SIZE = 2048


def multiply_matrices(dtype: str) -> Work:
    """Return a product of two square matrices, so large that only multiplying counts."""
    a = jax.random.normal(jax.random.key(0), (SIZE, SIZE), jnp.dtype(dtype))
    product = jax.jit(jnp.matmul)
    return Work(lambda: product(a, a).block_until_ready(), flops=lambda: 2.0 * SIZE**3)
