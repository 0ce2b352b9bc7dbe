"""HSTU's pointwise attention as a Pallas kernel for TPUs, forward and backward.

A tile of scores lives in VMEM only. All heads of a token lie side by side in the lanes: with the other
heads' lanes of q set to zero, one product with whole keys gives a head's scores. At head dimensions of 8
or 16 that costs the matrix unit no more than the head alone, and nothing has to be transposed.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn.attention import Block, Dropping, Layout, Weighing
from rec2pm_jax.typing import Array


class _Shape(NamedTuple):
    """What is static: N, heads, and the tiles of rows and keys."""

    norm: float
    heads: int
    tile: int
    row_tiles: int
    key_tiles: int
    flops: int  # of one product over everything the blocks reach, q k^T or weights v


def silu(q, k, v, layout: Layout, weighing: Weighing, biases, dropping: Dropping | None):
    """As `attention.dense`, for pointwise SiLU; off a TPU it runs interpreted, for tests.

    Raises:
      UserError: the weighing is softmax.
    """
    if not weighing.norm:
        raise UserError(
            "config.compute.attention=pallas is for model.backbone=hstu (pointwise SiLU); use auto, "
            "blockwise, dense or splash for softmax."
        )
    del dropping  # HSTU drops none of its weights
    batch, rows, heads, dim = q.shape
    keys = k.shape[1]
    tile = 128 if max(rows, keys) <= 128 else 256
    padded_rows, padded_keys = (-(-n // tile) * tile for n in (rows, keys))
    reached = sum((b.row_stop - b.row_start) * _reached(b, layout.num_slots) for b in layout.blocks)
    shape = _Shape(
        weighing.norm,
        heads,
        tile,
        padded_rows // tile,
        padded_keys // tile,
        2 * batch * heads * dim * reached,
    )

    def folded(x, length):  # [B, tokens, H, d] -> [B, padded, H * d]
        x = x.reshape(*x.shape[:2], -1)
        return jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0)))

    intervals = jnp.pad(visible(layout), ((0, 0), (0, padded_rows - rows), (0, 0)))
    bias = None
    if biases is not None:
        bias = _whole_bias(biases, layout, rows, keys)
        bias = jnp.pad(bias, ((0, 0), (0, padded_rows - rows), (0, padded_keys - keys)))
    out = _attend(
        shape,
        folded(q, padded_rows),
        folded(k, padded_keys),
        folded(v, padded_keys),
        bias,
        intervals,
    )
    return out[:, :rows].reshape(batch, rows, heads, -1)


def visible(layout: Layout) -> Array:
    """What each row sees, as intervals of keys: int32 [1 or B, rows, 4], slots then items."""
    first, parts = layout.num_slots, []
    for block in layout.blocks:
        spans = block.spans
        slots = (spans.slot_lo, jnp.minimum(spans.slot_hi, first))
        if block.key_start:
            slots = (jnp.zeros_like(spans.slot_lo),) * 2
        items = (
            jnp.maximum(spans.item_lo, block.item_start) + first,
            jnp.minimum(spans.item_hi + first, block.key_stop),
        )
        each = [jnp.asarray(x, jnp.int32) for x in (*slots, *items)]
        batch = max(x.shape[0] for x in each)
        parts.append(jnp.stack([jnp.broadcast_to(x, (batch, x.shape[1])) for x in each], axis=-1))
    batch = max(part.shape[0] for part in parts)
    return jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[1:])) for p in parts], axis=1)


def _reached(block: Block, num_slots: int) -> int:
    """Keys of a block."""
    return block.key_stop - num_slots - block.item_start + (0 if block.key_start else num_slots)


def _whole_bias(biases, layout: Layout, rows: int, keys: int) -> Array:
    """Biases of all blocks as one array [1 or B, rows, keys], 0 where no block reaches."""
    first, parts = layout.num_slots, []
    for bias, block in zip(biases, layout.blocks, strict=True):
        slots = 0 if block.key_start else first
        part = jnp.zeros((bias.shape[0], bias.shape[1], keys), jnp.float32)
        part = part.at[:, :, :slots].set(bias[:, :, :slots])
        items = slice(first + block.item_start, block.key_stop)
        parts.append(part.at[:, :, items].set(bias[:, :, slots:]))
    return jnp.concatenate(parts, axis=1)


def _occupied(shape: _Shape, intervals: Array) -> Array:
    """Whether anybody's row of a tile sees a key of a tile: int32 [row tiles, key tiles]."""
    begin = jnp.arange(shape.key_tiles, dtype=jnp.int32) * shape.tile

    def meets(lo, hi):
        seen = (lo[..., None] < begin + shape.tile) & (hi[..., None] > begin)
        return seen & (lo < hi)[..., None]

    found = meets(intervals[..., 0], intervals[..., 1]) | meets(
        intervals[..., 2], intervals[..., 3]
    )
    found = jnp.any(found, axis=0).reshape(shape.row_tiles, shape.tile, shape.key_tiles)
    return jnp.any(found, axis=1).astype(jnp.int32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(shape, q, k, v, bias, intervals):
    return _forward(shape, q, k, v, bias, intervals)[0]


def _forward(shape, q, k, v, bias, intervals):
    saved = (q, k, v, bias, intervals)
    (out,) = _call(shape, _forward_kernel, "silu_forward", saved, None, "q", products=2)
    return out.astype(v.dtype), saved


def _backward(shape, saved, to_out):
    q, k, v, bias, intervals = saved
    outputs = ("q",) if bias is None else ("q", "bias")
    to_q, *to_bias = _call(
        shape, _query_kernel, "silu_queries", saved, to_out, *outputs, products=3
    )
    to_k, to_v = _call(shape, _key_kernel, "silu_keys", saved, to_out, "k", "v", products=4)
    if bias is not None:
        to_bias = to_bias[0]
        to_bias = jnp.sum(to_bias, axis=0, keepdims=True) if bias.shape[0] == 1 else to_bias
    return (
        to_q.astype(q.dtype),
        to_k.astype(k.dtype),
        to_v.astype(v.dtype),
        to_bias if bias is not None else None,
        None,
    )


_attend.defvjp(_forward, _backward)


def _call(shape: _Shape, kernel, name: str, saved, to_out, *outputs: str, products: int):
    """Runs a kernel over (user, tile, tile); its last grid axis adds up what the outputs hold.

    outputs: which of q, k, v and bias the results are shaped (and cut into tiles) like; float32.
    """
    q, k, v, bias, intervals = saved
    by_key = "k" in outputs  # then tiles of keys stay in place and tiles of rows go by
    users = q.shape[0]

    def spec(of_rows: bool, width: int, own=True):
        def at(b, i, j, _):
            return (b if own else 0, j if of_rows == by_key else i, 0)

        return pl.BlockSpec((1, shape.tile, width), at)

    def cells(own: bool):
        def at(b, i, j, _):
            return (b if own else 0, j, i) if by_key else (b if own else 0, i, j)

        return pl.BlockSpec((1, shape.tile, shape.tile), at)

    arrays = {"q": q, "k": k, "v": v, "intervals": intervals}
    specs = {
        "q": spec(True, q.shape[2]),
        "k": spec(False, k.shape[2]),
        "v": spec(False, v.shape[2]),
        "intervals": spec(True, 4, own=intervals.shape[0] > 1),
    }
    if bias is not None:
        arrays["bias"], specs["bias"] = bias, cells(bias.shape[0] > 1)
    if to_out is not None:
        arrays["to_out"], specs["to_out"] = to_out, spec(True, v.shape[2])
    result_specs = {"q": specs["q"], "k": specs["k"], "v": specs["v"], "bias": cells(True)}
    cell_shape = (users, shape.row_tiles * shape.tile, shape.key_tiles * shape.tile)
    sizes = {"q": q.shape, "k": k.shape, "v": v.shape, "bias": cell_shape}
    if name == "silu_forward":
        sizes["q"] = (*q.shape[:2], v.shape[2])
        result_specs["q"] = spec(True, v.shape[2])
    results = [jax.ShapeDtypeStruct(sizes[o], jnp.float32) for o in outputs]
    tiles = (shape.key_tiles, shape.row_tiles) if by_key else (shape.row_tiles, shape.key_tiles)
    names = tuple(arrays)

    def body(occupied, *refs):
        given, made = dict(zip(names, refs, strict=False)), refs[len(names) :]
        i, j = pl.program_id(1), pl.program_id(2)
        row, key = (j, i) if by_key else (i, j)

        @pl.when(j == 0)
        def _():
            for ref in made:
                ref[...] = jnp.zeros(ref.shape, ref.dtype)

        if "bias" in outputs:  # every tile of it is visited once, also where nobody looks

            @pl.when(occupied[row, key] == 0)
            def _():
                made[-1][...] = jnp.zeros(made[-1].shape, made[-1].dtype)

        @pl.when(occupied[row, key] > 0)
        def _():
            kernel(shape, {n: ref[0] for n, ref in given.items()}, key * shape.tile, made)

    def run(interpret, occupied, *arrays):
        return pl.pallas_call(
            body,
            out_shape=results,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(users, *tiles),
                in_specs=[specs[n] for n in names],
                out_specs=[result_specs[o] for o in outputs],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary")
            ),
            cost_estimate=pl.CostEstimate(
                flops=products * shape.flops,
                transcendentals=shape.flops // (2 * q.shape[2] // shape.heads),
                bytes_accessed=sum(x.nbytes for x in arrays) + 4 * sum(r.size for r in results),
            ),
            interpret=interpret,
            name=name,
        )(occupied, *arrays)

    # Chosen when it is lowered, so that a host without a TPU can compile for one.
    return jax.lax.platform_dependent(
        _occupied(shape, intervals),
        *arrays.values(),
        tpu=partial(run, False),
        default=partial(run, True),
    )


def _mask(shape: _Shape, given, first_key) -> Array:
    """bool [rows, keys] of a tile whose first key has number `first_key`."""
    interval = given["intervals"]
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, (shape.tile, shape.tile), 1)
    lo, hi, item_lo, item_hi = (interval[:, n : n + 1] for n in range(4))
    return ((key >= lo) & (key < hi)) | ((key >= item_lo) & (key < item_hi))


def _of_head(shape: _Shape, x: Array, head: int) -> Array:
    """x [rows, H * d] with zeros in the lanes of all other heads."""
    width = x.shape[1] // shape.heads
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    own = (lane >= head * width) & (lane < (head + 1) * width)
    return jnp.where(own, x, jnp.zeros_like(x))


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _scores(shape: _Shape, given, head: int) -> Array:
    scores = _dot(_of_head(shape, given["q"], head), given["k"], (1, 1))
    return scores + given["bias"] if "bias" in given else scores


def _forward_kernel(shape: _Shape, given, first_key, made) -> None:
    mask, v = _mask(shape, given, first_key), given["v"]
    total = jnp.zeros(made[0].shape[1:], jnp.float32)
    for head in range(shape.heads):
        scores = _scores(shape, given, head)
        weights = jnp.where(mask, scores * jax.nn.sigmoid(scores) / shape.norm, 0.0)
        total += _of_head(shape, _dot(weights.astype(v.dtype), v, (1, 0)), head)
    made[0][0] += total


def _weights_and_slopes(shape: _Shape, given, mask: Array, head: int) -> tuple[Array, Array]:
    """Weights and the gradient of the scores, float32 [rows, keys]."""
    scores = _scores(shape, given, head)
    gate = jax.nn.sigmoid(scores)
    to_weights = _dot(_of_head(shape, given["to_out"], head), given["v"], (1, 1))
    slopes = gate * (1 + scores * (1 - gate)) / shape.norm * to_weights
    return (
        jnp.where(mask, scores * gate / shape.norm, 0.0),
        jnp.where(mask, slopes, 0.0),
    )


def _query_kernel(shape: _Shape, given, first_key, made) -> None:
    mask, k = _mask(shape, given, first_key), given["k"]
    total = jnp.zeros(made[0].shape[1:], jnp.float32)
    cells = jnp.zeros((shape.tile, shape.tile), jnp.float32)
    for head in range(shape.heads):
        _, slopes = _weights_and_slopes(shape, given, mask, head)
        total += _of_head(shape, _dot(slopes.astype(k.dtype), k, (1, 0)), head)
        cells += slopes
    made[0][0] += total
    if len(made) > 1:
        made[1][0] = cells


def _key_kernel(shape: _Shape, given, first_key, made) -> None:
    mask, q, to_out = _mask(shape, given, first_key), given["q"], given["to_out"]
    to_k, to_v = (jnp.zeros(ref.shape[1:], jnp.float32) for ref in made)
    for head in range(shape.heads):
        weights, slopes = _weights_and_slopes(shape, given, mask, head)
        to_k += _of_head(shape, _dot(slopes.astype(q.dtype), q, (0, 0)), head)
        to_v += _of_head(shape, _dot(weights.astype(to_out.dtype), to_out, (0, 0)), head)
    made[0][0] += to_k
    made[1][0] += to_v
