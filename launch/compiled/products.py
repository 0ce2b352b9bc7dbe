"""Matrix products in HLO: `dot`, and `convolution`, which is what they become on a TPU."""

from __future__ import annotations

import dataclasses
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
        return 2.0 * self.batch * self.m * self.n * self.k

    def padded_flops(self, mxu: int) -> float:
        """With sides filled up to the unit's: it is busy so long.

        One operand is loaded, a square at a time, and the other streams through it; loading the next
        square takes as long as streaming a square's worth of rows. The better of m and n streams.
        """

        def loaded(size):
            return -(-size // mxu) * mxu

        def streamed(size):
            return max(-(-size // SUBLANES) * SUBLANES, mxu)

        sides = min(streamed(self.m) * loaded(self.n), loaded(self.m) * streamed(self.n))
        return 2.0 * self.batch * sides * loaded(self.k)


def of(i: Instruction, left: Shape, right: Shape) -> Product:
    """The product that an instruction of opcode dot or convolution is."""
    return _dot(i, left, right) if i.opcode == "dot" else _convolution(i, left, right)


def _dot(i: Instruction, left: Shape, right: Shape) -> Product:
    contracted = i.numbers("lhs_contracting_dims")
    batch = i.numbers("lhs_batch_dims")
    both = {*contracted, *batch}
    m = math.prod(size for d, size in enumerate(left.dims) if d not in both)
    k = math.prod(left.dims[d] for d in contracted)
    b = math.prod(left.dims[d] for d in batch)
    return Product(b, m, right.elements // max(b * k, 1), k)


def _convolution(i: Instruction, left: Shape, right: Shape) -> Product:
    """On a TPU the dimensions of a product are features, or windows that meet each value once."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.attributes)
    lhs, rhs, out = labels[1], labels[2], labels[3]
    groups = int(i.attribute("feature_group_count") or 1)
    batch = int(i.attribute("batch_group_count") or 1) * groups
    m = left.dims[lhs.index("b")] // int(i.attribute("batch_group_count") or 1)
    n = right.dims[rhs.index("o")] // batch
    k = right.dims[rhs.index("i")]
    window = _window(i)
    for place, d in enumerate(c for c in out if c.isdigit()):
        given, made = left.dims[lhs.index(d)], i.shape.dims[out.index(d)]
        size = right.dims[rhs.index(d)]
        met = _pairs(given, size, made, *(w[place] for w in window))
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


def _window(i: Instruction) -> tuple[list[int], ...]:
    """Per dimension: stride, low padding, dilation of the left and of the right side."""
    text = re.search(r"window=\{([^}]*)\}", i.attributes)
    words = dict(w.split("=", 1) for w in text[1].split()) if text else {}
    rank = len(words.get("size", "").split("x")) if words else 0

    def each(name, default):
        return words[name].split("x") if name in words else [default] * rank

    low = [int(p.split("_")[0]) for p in each("pad", "0_0")]
    stride, left, right = (
        [int(n) for n in each(w, "1")] for w in ("stride", "lhs_dilate", "rhs_dilate")
    )
    return stride, low, left, right


def _pairs(given: int, size: int, made: int, stride: int, low: int, left: int, right: int) -> int:
    """How many (output, window) positions meet a value and neither padding nor a hole."""
    last = (given - 1) * left
    total = 0
    for out in range(made):
        for w in range(size):
            at = out * stride + w * right - low
            total += 0 <= at <= last and at % left == 0
    return total
