"""What a compiled program costs: every instruction as often as its loops turn.

XLA's own `cost_analysis` counts the body of a loop once. Here a body counts as often as the loop's
condition says. `tests/launch/test_compiled.py` and `tests/launch/test_aot.py` compare that with XLA's
counts of the same program unrolled. Kernels cost what their `CostEstimate` says.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator

from launch.compiled import products
from launch.compiled.hlo import Computation, Instruction, Module, Shape

COLLECTIVES = (
    "all-reduce all-gather reduce-scatter all-to-all ragged-all-to-all collective-permute "
    "collective-broadcast"
).split()
# Nothing moves: names for parts of buffers, or the second half of what was counted at its start.
_FREE = {
    *"parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id".split(),
    *"opt-barrier domain add-dependency iota".split(),
}
_SILENT = ("Assume", "AllocateBuffer", "ConcatBitcast")  # custom calls that move nothing
_ELEMENTWISE = set(
    "add subtract multiply divide maximum minimum negate abs sign compare select and or xor not power "
    "sqrt rsqrt exponential log logistic tanh sine cosine floor ceil clamp remainder "
    "exponential-minus-one log-plus-one shift-left shift-right-logical shift-right-arithmetic "
    "is-finite convert".split()
)


@dataclasses.dataclass
class Costs:
    """Of one run of a program on one chip.

    Attributes:
      flops: of products, elementwise operations and kernels; product_flops: of products and kernels.
      padded_flops: of products, with every side filled up to the matrix unit's.
      bytes_accessed: read and written by all instructions as XLA counts, wherever the buffers are;
        copies between memories count at their start and at their end.
      hbm_bytes: read from and written to HBM, once.
      collectives: kind -> [count, bytes]; bytes are the larger of what goes in and what comes out.
      wire_bytes: what a chip has to send for them, on a ring.
      unknown_loops: loops whose trip count only the data know; they are counted once.
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
        for field in dataclasses.fields(self):
            if field.name not in ("collectives", "unknown_loops"):
                value = getattr(self, field.name) + times * getattr(other, field.name)
                setattr(self, field.name, value)
        self.unknown_loops += other.unknown_loops
        for kind, (count, size) in other.collectives.items():
            total = self.collectives.setdefault(kind, [0, 0])
            total[0] += times * count
            total[1] += times * size


def costs_of(module: Module, mxu: int, chips: int = 1) -> Costs:
    """mxu: side of the matrix unit; chips: how many run the program together."""
    return _Counter(module, mxu, chips).of(module.entry, fused=False)


def trip_count(module: Module, loop: Instruction) -> int | None:
    """how often a while loop runs; None if data decide.

    It counts from 0 by ones while `i < constant`, which is what `lax.scan` and `fori_loop` make.
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
    def __init__(self, module: Module, mxu: int, chips: int):
        self.module, self.mxu, self.chips = module, mxu, chips
        self.known: dict[tuple[str, bool], Costs] = {}

    def of(self, name: str, fused: bool) -> Costs:
        """fused: inside of a fusion only the root's result and the parameters are in memory."""
        key = (name, fused)
        if key not in self.known:
            computation, total = self.module.computations[name], Costs()
            for instruction in computation.instructions:
                total.add(self._instruction(instruction, computation, fused))
            self.known[key] = total
        return self.known[key]

    def _instruction(self, i: Instruction, computation: Computation, fused: bool) -> Costs:
        cost = Costs()
        if i.opcode in _FREE:
            return cost
        if i.opcode.endswith(("-done", "-update")):
            # The second half of what moved at its start: XLA counts its buffers again.
            if not fused:
                shapes = [s for name in i.operands for s in computation.by_name[name].shapes]
                cost.bytes_accessed = sum(s.bytes for s in (*i.shapes, *shapes))
            return cost
        if i.opcode == "while":
            count = trip_count(self.module, i)
            cost.unknown_loops += count is None
            for name in i.called():
                cost.add(self.of(name, fused=False), 1 if count is None else count)
            return cost
        if i.opcode == "conditional":
            branches = [self.of(name, fused=False) for name in i.called()]
            cost.add(max(branches, key=lambda c: c.bytes_accessed))
            return cost
        if i.opcode in ("call", "async-start"):
            for name in i.called():
                cost.add(self.of(name, fused=False))
            return cost
        if i.opcode == "fusion":
            for name in i.called():
                cost.add(self.of(name, fused=True))
        self._arithmetic(cost, i, computation)
        if not fused:
            self._memory(cost, i, computation)
        kind = i.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            self._collective(cost, i, computation, kind)
        return cost

    def _arithmetic(self, cost: Costs, i: Instruction, computation: Computation) -> None:
        if i.opcode in ("dot", "convolution"):
            operands = [computation.by_name[name].shape for name in i.operands[:2]]
            product = products.of(i, *operands)
            cost.product_flops = cost.flops = product.flops
            cost.padded_flops = product.padded_flops(self.mxu)
        elif i.opcode == "custom-call":
            estimate = kernel_estimate(i)
            cost.product_flops = cost.flops = estimate["flops"]
            cost.padded_flops = estimate["mxu_flops"] or estimate["flops"]
        elif i.opcode in _ELEMENTWISE:
            cost.flops = i.shape.elements
        elif i.opcode in ("reduce", "reduce-window"):
            cost.flops = computation.by_name[i.operands[0]].shape.elements

    def _memory(self, cost: Costs, i: Instruction, computation: Computation) -> None:
        for shape, size in self._moved(i, computation):
            cost.bytes_accessed += size
            cost.hbm_bytes += 0 if shape.space else size

    def _moved(self, i: Instruction, computation: Computation) -> Iterator[tuple[Shape, float]]:
        """Buffers that an instruction reads or writes, and how many bytes of each."""
        operands = [computation.by_name[name] for name in i.operands]
        if i.opcode == "custom-call" and kernel_estimate(i)["kernel"]:
            yield Shape("u8", ()), kernel_estimate(i)["bytes_accessed"]
        elif i.opcode == "custom-call" and i.attribute("custom_call_target").startswith(_SILENT):
            return
        elif i.opcode in ("copy-start", "slice-start"):
            # A copy between memories: (destination, source, context); a slice reads what it writes.
            target = i.shapes[0] if i.opcode == "copy-start" else _sliced(i)
            for shape in (target, dataclasses.replace(target, space=operands[0].shape.space)):
                yield shape, shape.bytes
        elif i.opcode == "fusion":
            yield from self._fused(i, operands)
        elif i.opcode in ("dynamic-slice", "slice", "gather"):
            yield i.shape, i.shape.bytes
            yield operands[0].shape, i.shape.bytes
            for operand in operands[1:]:
                yield operand.shape, operand.shape.bytes
        elif i.opcode in ("dynamic-update-slice", "scatter"):
            update = operands[1 if i.opcode == "dynamic-update-slice" else -1].shape
            yield i.shape, update.bytes
            yield update, update.bytes
        else:
            shapes = i.shapes[:1] if i.opcode.endswith("-start") else i.shapes
            for shape in (*shapes, *(s for operand in operands for s in operand.shapes)):
                yield shape, shape.bytes

    def _fused(self, i: Instruction, operands) -> Iterator[tuple[Shape, float]]:
        """Parameters of which only slices are read count as these, and a slice written in place too."""
        inner = self.module.computations[i.called()[0]]
        for parameter, operand in zip(inner.parameters, operands, strict=True):
            for shape in operand.shapes:
                yield shape, _read(self.module, inner, parameter, shape)
        root = inner.root
        roots = [inner.by_name[n] for n in root.operands] if root.opcode == "tuple" else [root]
        for shape, result in zip(i.shapes, roots, strict=False):
            yield shape, _written(self.module, inner, result, shape)

    def _collective(self, cost: Costs, i: Instruction, computation: Computation, kind: str) -> None:
        given = sum(s.bytes for name in i.operands for s in computation.by_name[name].shapes)
        made = sum(s.bytes for s in i.shapes)
        if i.opcode.endswith("-start"):
            made = max(made - given, 0)  # the tuple holds its operands too
        size = max(given, made)
        cost.collectives[kind] = [1, size]
        n = group_size(i, self.chips)
        share = 1 if kind == "collective-permute" else (n - 1) / n
        cost.wire_bytes = size * share * (2 if kind == "all-reduce" else 1)


def group_size(i: Instruction, chips: int) -> int:
    """Chips that take part in a collective together."""
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", i.attributes)
    if iota:
        return int(iota[2])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", i.attributes)
    return len(listed[1].split(",")) if listed else chips


def kernel_estimate(i: Instruction) -> dict[str, float]:
    """What a Pallas kernel says of itself: `CostEstimate`, and `mxu_flops` of its metadata."""
    found = re.search(r'"cost_estimate":(\{[^}]*\})', i.attributes)
    values = {n: float(x) for n, x in json.loads(found[1]).items()} if found else {}
    padded = re.search(r'"mxu_flops":"(\d+)"', i.attributes)
    return {
        "kernel": float('custom_call_target="tpu_custom_call"' in i.attributes),
        "flops": values.get("flops", 0.0),
        "bytes_accessed": values.get("bytes_accessed", 0.0),
        "mxu_flops": float(padded[1]) if padded else 0.0,
    }


def _sliced(i: Instruction) -> Shape:
    """The result of slice-start, whose shape is ((operand), result, context)."""
    arrays = [s for s in i.shapes if s.dims]
    return arrays[1] if len(arrays) > 1 else arrays[0]


def _read(module: Module, inner: Computation, value: Instruction, shape: Shape) -> float:
    """Bytes of a fusion's parameter, or what a bitcast makes of it, that the fusion reads."""
    if value is inner.root:  # a nested fusion that only gives it another shape
        return shape.bytes
    total = 0.0
    for user in inner.users[value.name]:
        first = bool(user.operands) and user.operands[0] == value.name
        if user.opcode == "bitcast":
            total += _read(module, inner, user, shape)
        elif user.opcode == "fusion":
            nested = module.computations[user.called()[0]]
            for place, name in enumerate(user.operands):
                if name == value.name:
                    total += _read(module, nested, nested.parameters[place], shape)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += shape.bytes * user.shape.elements / max(shape.elements, 1)
        elif user.opcode == "scatter" and first:
            total += inner.by_name[user.operands[-1]].shape.bytes  # these rows are read and written
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # written in place
        else:
            return shape.bytes
    return min(total, shape.bytes)


def _written(module: Module, inner: Computation, result: Instruction, shape: Shape) -> float:
    """Bytes of a fusion's result: of an update in place, the updated slice."""
    while result.opcode in ("bitcast", "fusion"):
        if result.opcode == "fusion":
            inner = module.computations[result.called()[0]]
            result = inner.root
        else:
            result = inner.by_name[result.operands[0]]
    if result.opcode not in ("dynamic-update-slice", "scatter"):
        return shape.bytes
    update = inner.by_name[result.operands[1 if result.opcode != "scatter" else -1]].shape
    return shape.bytes * update.elements / max(shape.elements, 1)
