"""Products in HLO: `dot`, `convolution`, into which the TPU compiler turns them, and kernels."""

from __future__ import annotations

import dataclasses
import json
import math
import re

from launch.compiled.hlo import Instruction, Shape

SUBLANES = 8  # rows go through the matrix unit in eights


@dataclasses.dataclass(frozen=True)
class Product:
    """`batch` products of [m, k] and [k, n]."""

    batch: int
    m: int
    n: int
    k: int

    @property
    def flops(self) -> float:
        """Two operations per multiply-add."""
        return 2.0 * self.batch * self.m * self.n * self.k

    def padded_flops(self, mxu: int) -> float:
        """Return the FLOPs with sides filled up to the matrix unit's: what keeps the unit busy.

        One operand is loaded, a square at a time, and the other streams through it. Loading the next
        square takes as long as streaming a square's worth of rows. The better of m and n streams.

        Args:
          mxu: side of the matrix unit.
        """

        def loaded(size: int) -> int:
            return -(-size // mxu) * mxu

        def streamed(size: int) -> int:
            return max(-(-size // SUBLANES) * SUBLANES, mxu)

        sides = min(streamed(self.m) * loaded(self.n), loaded(self.m) * streamed(self.n))
        return 2.0 * self.batch * sides * loaded(self.k)


def read_product(i: Instruction, left: Shape, right: Shape) -> Product:
    """Return the product that an instruction of opcode dot or convolution computes.

    Args:
      i: the instruction.
      left: shape of its first operand.
      right: shape of its second operand.

    Raises:
      ValueError: a convolution without dimension labels.
    """
    return _read_dot(i, left, right) if i.opcode == "dot" else _read_convolution(i, left, right)


def read_kernel_estimate(i: Instruction) -> dict[str, float]:
    """Return the `CostEstimate` of a Pallas kernel, and `mxu_flops` of its metadata."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', i.attributes)
    values = {n: float(x) for n, x in json.loads(found[1]).items()} if found else {}
    padded = re.search(r'"mxu_flops":"(\d+)"', i.attributes)
    return {
        "kernel": float('custom_call_target="tpu_custom_call"' in i.attributes),
        "flops": values.get("flops", 0.0),
        "bytes_accessed": values.get("bytes_accessed", 0.0),
        "mxu_flops": float(padded[1]) if padded else 0.0,
    }


def _read_dot(i: Instruction, left: Shape, right: Shape) -> Product:
    contracted = i.numbers("lhs_contracting_dims")
    batch = i.numbers("lhs_batch_dims")
    both = {*contracted, *batch}
    m = math.prod(size for d, size in enumerate(left.dims) if d not in both)
    k = math.prod(left.dims[d] for d in contracted)
    b = math.prod(left.dims[d] for d in batch)
    return Product(b, m, right.elements // max(b * k, 1), k)


def _read_convolution(i: Instruction, left: Shape, right: Shape) -> Product:
    """Return a convolution as a product.

    On a TPU the dimensions of a product are features, or windows that meet each value once.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    if labels is None:
        raise ValueError(f"This convolution has no dimension labels: {i.name}")
    lhs, rhs, out = labels[1], labels[2], labels[3]
    groups = int(i.attribute("feature_group_count") or 1)
    batch = int(i.attribute("batch_group_count") or 1) * groups
    m = left.dims[lhs.index("b")] // int(i.attribute("batch_group_count") or 1)
    n = right.dims[rhs.index("o")] // batch
    k = right.dims[rhs.index("i")]
    windows = _read_windows(i)
    for place, d in enumerate(c for c in out if c.isdigit()):
        given, made = left.dims[lhs.index(d)], i.shape.dims[out.index(d)]
        size = right.dims[rhs.index(d)]
        met = _count_pairs(given, size, made, windows[place])
        if size == 1:
            m *= made
        elif made == 1:
            k *= met
        elif given == 1:
            n *= made
        elif met == made:
            batch *= made
        else:  # a convolution proper
            m *= made
            k *= max(met // made, 1)
    return Product(batch, m, n, k)


@dataclasses.dataclass(frozen=True)
class _Window:
    """How a window moves along one dimension."""

    stride: int
    low: int  # padding before the first value
    left_dilation: int
    right_dilation: int


def _read_windows(i: Instruction) -> list[_Window]:
    """Return the window of each dimension of a convolution."""
    text = re.search(r"window=\{([^}]*)\}", i.attributes)
    words = dict(w.split("=", 1) for w in text[1].split()) if text else {}
    rank = len(words.get("size", "").split("x")) if words else 0

    def each(name: str, default: str) -> list[str]:
        return words[name].split("x") if name in words else [default] * rank

    low = [int(p.split("_")[0]) for p in each("pad", "0_0")]
    stride, left, right = (
        [int(n) for n in each(w, "1")] for w in ("stride", "lhs_dilate", "rhs_dilate")
    )
    return [_Window(*sizes) for sizes in zip(stride, low, left, right, strict=True)]


def _count_pairs(given: int, size: int, made: int, window: _Window) -> int:
    """Count the (output, window) positions that meet a value, not padding and not a hole.

    Args:
      given: values along the dimension.
      size: length of the window.
      made: outputs along the dimension.
      window: how it moves.
    """
    last = (given - 1) * window.left_dilation
    total = 0
    for out in range(made):
        for w in range(size):
            at = out * window.stride + w * window.right_dilation - window.low
            total += 0 <= at <= last and at % window.left_dilation == 0
    return total
