"""Counts the work of a compiled program, with bodies of loops as often as they run.

XLA's own `cost_analysis` counts the body of a loop once. Here its trip count comes from the condition
of the loop. `tests/launch/test_compiled.py` and `tests/launch/test_aot.py` compare the counts with
XLA's of the same program unrolled. A kernel counts by its `CostEstimate`.
"""

from __future__ import annotations

import dataclasses
import re

from launch.compiled.hlo import Computation, Instruction, Module
from launch.compiled.memory import list_moves
from launch.compiled.products import read_kernel_estimate, read_product

COLLECTIVES = (
    "all-reduce all-gather reduce-scatter all-to-all ragged-all-to-all collective-permute "
    "collective-broadcast"
).split()
# Nothing moves: these name parts of buffers.
_FREE = {
    *"parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id".split(),
    *"opt-barrier domain add-dependency iota".split(),
}
_ELEMENTWISE = set(
    "add subtract multiply divide maximum minimum negate abs sign compare select and or xor not power "
    "sqrt rsqrt exponential log logistic tanh sine cosine floor ceil clamp remainder "
    "exponential-minus-one log-plus-one shift-left shift-right-logical shift-right-arithmetic "
    "is-finite convert".split()
)


@dataclasses.dataclass
class Costs:
    """Work of one run of a program on one chip.

    Attributes:
      flops: of products, elementwise operations and kernels.
      product_flops: of products and kernels.
      padded_flops: of products, with every side filled up to the matrix unit's.
      bytes_accessed: read and written by all instructions as XLA counts, wherever the buffers are;
        copies between memories count at their start and at their end.
      hbm_bytes: read from and written to HBM, once.
      wire_bytes: sent by a chip for collectives, on a ring.
      unknown_loops: loops whose trip count depends on data; they are counted once.
      collectives: kind -> [count, bytes]; bytes are the larger of input and output.
    """

    flops: float = 0.0
    product_flops: float = 0.0
    padded_flops: float = 0.0
    bytes_accessed: float = 0.0
    hbm_bytes: float = 0.0
    wire_bytes: float = 0.0
    unknown_loops: int = 0
    collectives: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, other: Costs, times: float = 1) -> None:
        """Add other work, done so many times."""
        for field in dataclasses.fields(self):
            if field.name not in ("collectives", "unknown_loops"):
                value = getattr(self, field.name) + times * getattr(other, field.name)
                setattr(self, field.name, value)
        self.unknown_loops += other.unknown_loops
        for kind, (count, size) in other.collectives.items():
            total = self.collectives.setdefault(kind, [0, 0])
            total[0] += times * count
            total[1] += times * size


def count_costs(module: Module, mxu: int, chips: int = 1) -> Costs:
    """Return the work of a program on one chip.

    Args:
      module: the program.
      mxu: side of the matrix unit.
      chips: how many chips run the program together.
    """
    return _Counter(module, mxu, chips).count(module.entry, fused=False)


def find_trip_count(module: Module, loop: Instruction) -> int | None:
    """Return how often a while loop runs; None if that depends on data.

    Loops of `lax.scan` and `fori_loop` count from 0 by ones while `i < constant`.

    Args:
      module: the program.
      loop: an instruction of opcode while.
    """
    known = re.search(r"known_trip_count\D+(\d+)", loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition")]
    root = condition.root
    if root.opcode == "fusion":
        inner = module.computations[root.called()[0]].root
        root = dataclasses.replace(root, opcode=inner.opcode, attributes=inner.attributes)
    if root.opcode != "compare" or root.attribute("direction") != "LT" or len(root.operands) != 2:
        return None
    counter, limit = (condition.by_name[name] for name in root.operands)
    if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
        return None
    return int(limit.argument)


class _Counter:
    """Counts computations once each and remembers their costs."""

    def __init__(self, module: Module, mxu: int, chips: int):
        self.module, self.mxu, self.chips = module, mxu, chips
        self.known: dict[tuple[str, bool], Costs] = {}

    def count(self, name: str, fused: bool) -> Costs:
        """Return the costs of a computation.

        Args:
          name: of the computation.
          fused: whether it is the inside of a fusion, which keeps only its result and its parameters
            in memory.
        """
        key = (name, fused)
        if key not in self.known:
            computation, total = self.module.computations[name], Costs()
            for instruction in computation.instructions:
                total.add(self._count_instruction(instruction, computation, fused))
            self.known[key] = total
        return self.known[key]

    def _count_instruction(self, i: Instruction, computation: Computation, fused: bool) -> Costs:
        cost = Costs()
        if i.opcode in _FREE:
            return cost
        if i.opcode.endswith(("-done", "-update")):
            # The second half of a move that was counted at its start: XLA counts its buffers again.
            if not fused:
                shapes = [s for name in i.operands for s in computation.by_name[name].shapes]
                cost.bytes_accessed = sum(s.bytes for s in (*i.shapes, *shapes))
            return cost
        if i.opcode == "while":
            count = find_trip_count(self.module, i)
            cost.unknown_loops += count is None
            for name in i.called():
                cost.add(self.count(name, fused=False), 1 if count is None else count)
            return cost
        if i.opcode == "conditional":
            branches = [self.count(name, fused=False) for name in i.called()]
            cost.add(max(branches, key=lambda c: c.bytes_accessed))
            return cost
        if i.opcode in ("call", "async-start"):
            for name in i.called():
                cost.add(self.count(name, fused=False))
            return cost
        if i.opcode == "fusion":
            for name in i.called():
                cost.add(self.count(name, fused=True))
        self._add_arithmetic(cost, i, computation)
        if not fused:
            self._add_memory(cost, i, computation)
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._add_collective(cost, i, computation, kind)
        return cost

    def _add_arithmetic(self, cost: Costs, i: Instruction, computation: Computation) -> None:
        if i.opcode in ("dot", "convolution"):
            operands = [computation.by_name[name].shape for name in i.operands[:2]]
            product = read_product(i, *operands)
            cost.product_flops = cost.flops = product.flops
            cost.padded_flops = product.padded_flops(self.mxu)
        elif i.opcode == "custom-call":
            estimate = read_kernel_estimate(i)
            cost.product_flops = cost.flops = estimate["flops"]
            cost.padded_flops = estimate["mxu_flops"] or estimate["flops"]
        elif i.opcode in _ELEMENTWISE:
            cost.flops = i.shape.elements
        elif i.opcode in ("reduce", "reduce-window"):
            cost.flops = computation.by_name[i.operands[0]].shape.elements

    def _add_memory(self, cost: Costs, i: Instruction, computation: Computation) -> None:
        for shape, size in list_moves(self.module, i, computation):
            cost.bytes_accessed += size
            cost.hbm_bytes += 0 if shape.space else size

    def _add_collective(
        self, cost: Costs, i: Instruction, computation: Computation, kind: str
    ) -> None:
        given = sum(s.bytes for name in i.operands for s in computation.by_name[name].shapes)
        made = sum(s.bytes for s in i.shapes)
        if i.opcode.endswith("-start"):
            made = max(made - given, 0)  # the tuple holds its operands too
        size = max(given, made)
        cost.collectives[kind] = [1, size]
        n = count_group(i, self.chips)
        share = 1 if kind == "collective-permute" else (n - 1) / n
        cost.wire_bytes = size * share * (2 if kind == "all-reduce" else 1)


def count_group(i: Instruction, chips: int) -> int:
    """Return how many chips take part in a collective together; `chips` if it does not say."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", i.attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", i.attributes)
    return len(listed[1].split(",")) if listed else chips
