"""Attention on intervals as a Pallas kernel for TPUs, forward and backward, SiLU and softmax.

No score leaves the chip's vector memory, and tiles of keys that a tile of rows does not see are
skipped, by each user's own intervals. A user's keys and values stay in vector memory while tiles of
rows go by, so that every array is read and written once and the backward pass is one kernel of five
products. JAX's splash attention takes static masks only, and pads heads to 128 features.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rec2pm_jax.errors import UserError
from rec2pm_jax.nn import pallas_kernels
from rec2pm_jax.nn.attention import AttentionDropout, Layout, ScoreNormalizer
from rec2pm_jax.nn.intervals import intervals_of, reached, tiles_reached, tiles_seen, whole_bias
from rec2pm_jax.nn.pallas_tiles import Sizes
from rec2pm_jax.nn.recompute import attended

ROW_TILE, KEY_TILE = 128, 256
DEFAULT_VMEM = 12 << 20  # of a kernel's buffers: what fits without asking for more
MOST_VMEM = 96 << 20  # of 128 MiB on v5e and v6e


def unsupported_reason(q, k, v, biases, dropout: AttentionDropout | None) -> str:
    """Why the kernel cannot take a pass, or nothing."""
    if dropout is not None:
        return "softmax weights are dropped out (config.model.dropout=0)"
    needed = _vmem_bytes(q, k, v, biases is not None)
    if needed > MOST_VMEM:
        return (
            f"{k.shape[1]} keys of {k.shape[2]} x {k.shape[3]} need {needed >> 20} MiB of vector "
            f"memory, more than {MOST_VMEM >> 20}"
        )
    return ""


def pallas(
    q,
    k,
    v,
    layout: Layout,
    normalizer: ScoreNormalizer,
    biases,
    dropout: AttentionDropout | None,
):
    """As `attention.dense`; off a TPU the kernel runs interpreted, which is for tests.

    Raises:
      UserError: the pass does not fit, see `unsupported_reason`.
    """
    reason = unsupported_reason(q, k, v, biases, dropout)
    if reason:
        raise UserError(
            f"config.compute.attention=pallas does not fit: {reason}. Use auto or dense."
        )
    batch, rows, heads, _ = q.shape
    keys = k.shape[1]
    intervals = intervals_of(layout)
    key_tile = KEY_TILE if keys > ROW_TILE else ROW_TILE
    sizes = Sizes(
        norm=normalizer.norm,
        heads=heads,
        features=heads * q.shape[3],
        value_features=heads * v.shape[3],
        rows=rows,
        keys=keys,
        row_tile=ROW_TILE,
        key_tile=key_tile,
        shared=intervals.shape[0] == 1,
        exact=q.dtype == jnp.float32,
        pairs=sum((b.row_stop - b.row_start) * reached(b, layout.num_slots) for b in layout.blocks),
        tiles=tiles_reached(layout, ROW_TILE, key_tile),
        vmem=_vmem_bytes(q, k, v, biases is not None),
    )

    def features_first(x):  # [B, tokens, H, d] -> [B, H * d, tokens]
        return jnp.swapaxes(x.reshape(*x.shape[:2], -1), 1, 2)

    bias = None if biases is None else whole_bias(biases, layout, keys)
    q, k, v = (features_first(x) for x in (q, k, v))
    out = _attend(sizes, q, k, v, bias, intervals)
    return jnp.swapaxes(out, 1, 2).reshape(batch, rows, heads, -1)


def _vmem_bytes(q, k, v, biased: bool) -> int:
    """Of the backward pass: keys, values and gradients, double-buffered, and float32 sums."""
    keys = -(-k.shape[1] // KEY_TILE) * KEY_TILE
    features = k.shape[2] * (k.shape[3] + v.shape[3])
    of_keys = keys * features * (4 * q.dtype.itemsize + 4)
    of_bias = 4 * keys * ROW_TILE * 4 if biased else 0
    return of_keys + of_bias + (2 << 20)  # tiles of rows and of scores


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(sizes, q, k, v, bias, intervals):
    return _forward(sizes, q, k, v, bias, intervals)[0]


def _forward(sizes: Sizes, q, k, v, bias, intervals):
    users, per_row = len(q), (sizes.heads, sizes.row_tile)
    outputs = {"out": jax.ShapeDtypeStruct((users, sizes.value_features, sizes.rows), v.dtype)}
    scratch = [(sizes.value_features, sizes.row_tile)]
    kernel = pallas_kernels.silu_forward
    if not sizes.norm:
        kernel = pallas_kernels.softmax_forward
        sums = jax.ShapeDtypeStruct((users, sizes.heads, sizes.rows), jnp.float32)
        outputs["log_sums"] = sums
        scratch += [per_row, per_row]
    arrays = {"q": q, "k": k, "v": v, "intervals": intervals, "bias": bias}
    made = _call(sizes, kernel, "attention_forward", arrays, outputs, scratch, products=2)
    if sizes.norm:  # SiLU's gradient needs nothing of the forward pass
        return attended(made["out"]), (arrays, {})
    made = {name: attended(x) for name, x in made.items()}
    return made["out"], (arrays, made)


def _backward(sizes: Sizes, saved, to_out):
    arrays, made = saved
    arrays = {n: arrays[n] for n in ("q", "k", "v", "intervals", "bias")}  # saving sorted them
    q, k, v, _, bias = arrays.values()
    inner = None
    if not sizes.norm:
        # sum_k weight_k d(weight_k) = <out, d(out)>
        inner = made["out"].astype(jnp.float32) * to_out.astype(jnp.float32)
        inner = jnp.sum(inner.reshape(len(q), sizes.heads, -1, sizes.rows), axis=2)
    arrays = arrays | {"to_out": to_out, "log_sums": made.get("log_sums"), "inner": inner}
    outputs = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in (("to_q", q), ("to_k", k), ("to_v", v))
    }
    outputs["to_bias"] = None
    if bias is not None:
        outputs["to_bias"] = jax.ShapeDtypeStruct((len(q), *bias.shape[1:]), jnp.float32)
    scratch = [
        (sizes.features, sizes.row_tile),
        (sizes.features, sizes.padded_keys),
        (sizes.value_features, sizes.padded_keys),
    ]
    kernel = pallas_kernels.backward
    made = _call(sizes, kernel, "attention_backward", arrays, outputs, scratch, products=5)
    to_bias = made.get("to_bias")
    if bias is not None and len(bias) == 1:
        to_bias = jnp.sum(to_bias, axis=0, keepdims=True)
    return made["to_q"], made["to_k"], made["to_v"], to_bias, None


_attend.defvjp(_forward, _backward)


def _specs(sizes: Sizes, bias, intervals) -> dict[str, pl.BlockSpec]:
    """How arrays are cut over the grid (user, tile of rows)."""

    def of_rows(height: int, own: bool = True):
        block = (1, height, sizes.row_tile)
        return pl.BlockSpec(block, lambda b, i, _: (b if own else 0, 0, i))

    def of_keys(height: int):
        return pl.BlockSpec((1, height, sizes.padded_keys), lambda b, i, _: (b, 0, 0))

    q, k = of_rows(sizes.features), of_keys(sizes.features)
    out, v = of_rows(sizes.value_features), of_keys(sizes.value_features)
    per_head = of_rows(sizes.heads)
    return {
        **{"q": q, "to_q": q, "k": k, "to_k": k, "v": v, "to_v": v, "out": out, "to_out": out},
        **{"log_sums": per_head, "inner": per_head},
        "intervals": of_rows(4, own=len(intervals) > 1),
        "bias": None if bias is None else of_rows(sizes.padded_keys, own=len(bias) > 1),
        "to_bias": of_rows(sizes.padded_keys),
    }


def _call(sizes: Sizes, kernel, name: str, arrays, outputs, scratch, products: int):
    """Runs a kernel over (user, tile of rows); inputs and outputs that are None reach it as None.

    arrays, outputs: name -> array, or shape, or None, in the kernel's order; scratch: shapes of
    float32; products: matrix products per tile, for the cost, as XLA cannot look into a kernel.
    Returns name -> array.
    """
    specs = _specs(sizes, arrays["bias"], arrays["intervals"])
    given = {n: x for n, x in arrays.items() if x is not None}
    made = {n: x for n, x in outputs.items() if x is not None}
    users = len(given["q"])

    def body(seen, *refs):
        left = iter(refs)
        both = (*arrays.values(), *outputs.values())
        kernel(sizes, seen, *(None if x is None else next(left) for x in both), *left)

    traffic = sum(x.nbytes for x in given.values())
    if "bias" in given and len(given["bias"]) == 1:
        traffic += (users - 1) * given["bias"].nbytes  # read again for every user
    cost = pl.CostEstimate(
        flops=products * users * sizes.pairs * (sizes.features + sizes.value_features),
        transcendentals=users * sizes.heads * sizes.pairs,
        bytes_accessed=traffic + sum(o.size * o.dtype.itemsize for o in made.values()),
    )
    # What the matrix unit is busy with: whole tiles, and features filled up to its 128.
    depth = -(-sizes.features // sizes.heads // 128) * 128
    cells = users * sizes.heads * sizes.tiles * sizes.row_tile * sizes.key_tile
    vmem = None if sizes.vmem <= DEFAULT_VMEM else sizes.vmem + (sizes.vmem >> 2)

    def run(interpret, seen, *arrays):
        return pl.pallas_call(
            body,
            out_shape=list(made.values()),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(users, sizes.row_tiles),
                in_specs=[specs[n] for n in given],
                out_specs=[specs[n] for n in made],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem
            ),
            cost_estimate=cost,
            interpret=interpret,
            name=name,
            metadata={"mxu_flops": str(2 * products * depth * cells)},
        )(seen, *arrays)

    # Chosen when it is lowered, so that a host without a TPU can compile for one.
    results = jax.lax.platform_dependent(
        tiles_seen(given["intervals"], sizes.row_tile, sizes.key_tile).reshape(-1),
        *given.values(),
        tpu=partial(run, False),
        default=partial(run, True),
    )
    return dict(zip(made, results, strict=True))
