"""Run an attention kernel over the grid (user, tile of rows)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rec2pm_jax.nn.attention.pallas_intervals import visible_tiles
from rec2pm_jax.nn.attention.pallas_tiles import KeyRefs, Ref, Sizes
from rec2pm_jax.typing import Array

DEFAULT_VMEM = 12 << 20  # bytes of a kernel's buffers that fit without asking for more


class KernelCall(NamedTuple):
    """A kernel, the class of its references, and its cost.

    Attributes:
      name: in profiles.
      kernel: (sizes, tiles, refs) -> None.
      refs: class of the kernel's references.
      products: matrix products per tile, for the cost: XLA cannot look into a kernel.
    """

    name: str
    kernel: Callable[[Sizes, Ref, Any], None]
    refs: type[KeyRefs]
    products: int


def run_kernel(
    sizes: Sizes,
    call: KernelCall,
    arrays: dict[str, Any],
    outputs: dict[str, jax.ShapeDtypeStruct],
    scratch: dict[str, tuple[int, int]],
) -> dict[str, Array]:
    """Run a kernel over the grid (user, tile of rows).

    Args:
      sizes: of the call.
      call: the kernel.
      arrays: by the names of the kernel's references; those that are None are left out.
      outputs: shapes by the names of the kernel's references.
      scratch: shapes of float32 by the names of the kernel's references.

    Returns:
      The outputs by name.
    """
    bias, intervals = arrays["bias"], arrays["intervals"]
    specs = _block_specs(sizes, bias, intervals)
    given = {name: x for name, x in arrays.items() if x is not None}
    users = len(given["q"])

    def body(tiles: Ref, *refs: Ref) -> None:
        named = dict(zip([*given, *outputs, *scratch], refs, strict=True))
        call.kernel(sizes, tiles, call.refs(**named))

    traffic = sum(x.nbytes for x in given.values())
    if bias is not None and len(bias) == 1:
        traffic += (users - 1) * bias.nbytes  # read again for every user
    cost = pl.CostEstimate(
        flops=call.products * users * sizes.pairs * (sizes.features + sizes.value_features),
        transcendentals=users * sizes.heads * sizes.pairs,
        bytes_accessed=traffic + sum(o.size * o.dtype.itemsize for o in outputs.values()),
    )
    # What keeps the matrix unit busy: whole tiles, and features padded to its 128.
    depth = -(-sizes.features // sizes.heads // 128) * 128
    cells = users * sizes.heads * sizes.tiles * sizes.row_tile * sizes.key_tile
    vmem = None if sizes.vmem <= DEFAULT_VMEM else sizes.vmem + (sizes.vmem >> 2)

    def run(interpret: bool, tiles: Array, *arrays: Array) -> list[Array]:
        return pl.pallas_call(
            body,
            out_shape=list(outputs.values()),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(users, sizes.row_tiles),
                in_specs=[specs[name] for name in given],
                out_specs=[specs[name] for name in outputs],
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
            ),
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem
            ),
            cost_estimate=cost,
            interpret=interpret,
            name=call.name,
            metadata={"mxu_flops": str(2 * call.products * depth * cells)},
        )(tiles, *arrays)

    # Chosen when it is lowered, so that a host without a TPU can compile for one.
    results = jax.lax.platform_dependent(
        visible_tiles(intervals, sizes.row_tile, sizes.key_tile).reshape(-1),
        *given.values(),
        tpu=partial(run, False),
        default=partial(run, True),
    )
    return dict(zip(outputs, results, strict=True))


def _block_specs(
    sizes: Sizes, bias: Array | None, intervals: Array
) -> dict[str, pl.BlockSpec | None]:
    """Return name -> how an array is cut over the grid (user, tile of rows)."""

    def of_rows(height: int, per_user: bool = True) -> pl.BlockSpec:
        block = (1, height, sizes.row_tile)
        return pl.BlockSpec(block, lambda b, i, _: (b if per_user else 0, 0, i))

    def of_keys(height: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, height, sizes.padded_keys), lambda b, i, _: (b, 0, 0))

    q, k = of_rows(sizes.features), of_keys(sizes.features)
    out, v = of_rows(sizes.value_features), of_keys(sizes.value_features)
    per_head = of_rows(sizes.heads)
    return {
        **{"q": q, "to_q": q, "k": k, "to_k": k, "v": v, "to_v": v, "out": out, "to_out": out},
        **{"log_sums": per_head, "inner": per_head},
        "intervals": of_rows(4, per_user=len(intervals) > 1),
        "bias": None if bias is None else of_rows(sizes.padded_keys, per_user=len(bias) > 1),
        "to_bias": of_rows(sizes.padded_keys),
    }
