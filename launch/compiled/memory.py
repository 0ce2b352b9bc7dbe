"""What the instructions of a compiled program read and write in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from launch.compiled.hlo import Computation, Instruction, Module, Shape
from launch.compiled.products import read_kernel_estimate

_SILENT = ("Assume", "AllocateBuffer", "ConcatBitcast")  # custom calls that move nothing


def list_moves(
    module: Module, i: Instruction, computation: Computation
) -> Iterator[tuple[Shape, float]]:
    """Yield the buffers that an instruction reads or writes, and how many bytes of each."""
    operands = [computation.by_name[name] for name in i.operands]
    if i.opcode == "custom-call" and read_kernel_estimate(i)["kernel"]:
        yield Shape("u8", ()), read_kernel_estimate(i)["bytes_accessed"]
    elif i.opcode == "custom-call" and i.attribute("custom_call_target").startswith(_SILENT):
        return
    elif i.opcode in ("copy-start", "slice-start"):
        # A copy between memories: (destination, source, context); a slice reads what it writes.
        target = i.shapes[0] if i.opcode == "copy-start" else _find_sliced(i)
        for shape in (target, dataclasses.replace(target, space=operands[0].shape.space)):
            yield shape, shape.bytes
    elif i.opcode == "fusion":
        yield from _list_fused_moves(module, i, operands)
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


def _list_fused_moves(
    module: Module, i: Instruction, operands: Sequence[Instruction]
) -> Iterator[tuple[Shape, float]]:
    """Yield the moves of a fusion.

    Only slices count of parameters that are read in slices and of results written in place.
    """
    inner = module.computations[i.called()[0]]
    for parameter, operand in zip(inner.parameters, operands, strict=True):
        for shape in operand.shapes:
            yield shape, _count_read(module, inner, parameter, shape)
    root = inner.root
    roots = [inner.by_name[n] for n in root.operands] if root.opcode == "tuple" else [root]
    for shape, result in zip(i.shapes, roots, strict=False):
        yield shape, _count_written(module, inner, result, shape)


def _find_sliced(i: Instruction) -> Shape:
    """Return the result of slice-start, whose shape is ((operand), result, context)."""
    arrays = [s for s in i.shapes if s.dims]
    return arrays[1] if len(arrays) > 1 else arrays[0]


def _count_read(module: Module, inner: Computation, value: Instruction, shape: Shape) -> float:
    """Return how many bytes of a parameter, or of its bitcast, a fusion reads."""
    if value is inner.root:  # a nested fusion that only gives it another shape
        return shape.bytes
    total = 0.0
    for user in inner.users[value.name]:
        first = bool(user.operands) and user.operands[0] == value.name
        if user.opcode == "bitcast":
            total += _count_read(module, inner, user, shape)
        elif user.opcode == "fusion":
            nested = module.computations[user.called()[0]]
            for place, name in enumerate(user.operands):
                if name == value.name:
                    total += _count_read(module, nested, nested.parameters[place], shape)
        elif user.opcode in ("dynamic-slice", "slice", "gather") and first:
            total += shape.bytes * user.shape.elements / max(shape.elements, 1)
        elif user.opcode == "scatter" and first:
            total += inner.by_name[user.operands[-1]].shape.bytes  # these rows are read and written
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # written in place
        else:
            return shape.bytes
    return min(total, shape.bytes)


def _count_written(module: Module, inner: Computation, result: Instruction, shape: Shape) -> float:
    """Return how many bytes of a result a fusion writes: of an update in place, the slice only."""
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
