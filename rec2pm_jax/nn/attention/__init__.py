"""Attention: one mask rule (`masks`), one entry point (`attend`), four implementations.

masks.py            who sees whom: VisibleRange, Block, Layout
spec.py             how scores become weights: ScoreNormalizer, AttentionDropout, AttentionSpec
dispatch.py         `attend`: selects an implementation and runs it
dense.py            the definition: all scores of a block at once
blockwise.py        CPUs: scores that fit a core's cache (with block_inputs.py, row_bands.py)
cudnn.py            NVIDIA GPUs
pallas.py           TPUs (with pallas_call.py, _kernels.py, _tiles.py and _intervals.py)
"""

from rec2pm_jax.nn.attention.dispatch import attend, weight_recorder
from rec2pm_jax.nn.attention.masks import Block, Layout, VisibleRange, causal_blocks, mask_of
from rec2pm_jax.nn.attention.spec import (
    AttentionDropout,
    AttentionSpec,
    KeyValues,
    ScoreNormalizer,
)

__all__ = [
    "AttentionDropout",
    "AttentionSpec",
    "Block",
    "KeyValues",
    "Layout",
    "ScoreNormalizer",
    "VisibleRange",
    "attend",
    "causal_blocks",
    "mask_of",
    "weight_recorder",
]
