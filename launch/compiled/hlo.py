"""Optimised HLO as text -> computations of instructions. Pure: knows nothing of JAX or of costs."""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cached_property

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_LEAF = re.compile(r"(?P<dtype>[a-z]+[0-9a-z]*)\[(?P<dims>[^\]]*)\](?:\{(?P<layout>[^}]*)\})?")
_TILE = re.compile(r"\(([\d,]+)\)")
_NAME = r"%[\w.\-]+"


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array in memory.

    Attributes:
      dtype: as HLO names it. dims: logical sizes.
      minor_to_major, tile: the order of dimensions in memory, and what the last are padded to.
      space: memory space, 0 for HBM and 1 for a TPU's vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        return int(re.search(r"\d+", self.dtype)[0])

    @property
    def bytes(self) -> int:
        """With the padding of tiles."""
        physical = [self.dims[i] for i in reversed(self.minor_to_major)] or list(self.dims)
        for place, size in enumerate(reversed(self.tile), 1):
            if place <= len(physical):
                physical[-place] = -(-physical[-place] // size) * size
        return math.prod(physical) * self.bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """name = shapes opcode(operands), attributes. A tuple has several shapes."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str  # what stands between the parentheses: a constant's value, a parameter's number
    attributes: str
    is_root: bool

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def attribute(self, name: str) -> str:
        """A word such as `direction=LT` or `calls=%name`, or ''."""
        found = re.search(rf'\b{name}="?%?([\w.\-]+)', self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """A list such as `lhs_contracting_dims={1,2}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    def called(self) -> tuple[str, ...]:
        """Names of the computations it runs: fused ones, bodies, branches."""
        found = re.findall(rf"\b(?:calls|to_apply|body|condition)=({_NAME})", self.attributes)
        found += re.findall(rf"\b(?:true|false)_computation=({_NAME})", self.attributes)
        for group in re.findall(r"\bbranch_computations=\{([^}]*)\}", self.attributes):
            found += re.findall(_NAME, group)
        return tuple(name[1:] for name in found)

    @property
    def op_name(self) -> str:
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.argument))


@dataclasses.dataclass(frozen=True)
class Module:
    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Reads what `Compiled.as_text()` returns.

    Raises:
      ValueError: there is no entry computation, or a line that is no instruction.
    """
    computations: dict[str, Computation] = {}
    entry = name = None
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(rf"(ENTRY )?({_NAME}) .*\{{$", line)
        if header:
            name, lines = header[2][1:], []
            entry = name if header[1] else entry
        elif name is None:
            continue
        elif line.startswith("}") and len(line) == 1:
            computations[name] = Computation(name, tuple(map(_instruction, lines)))
            name = None
        elif re.match(rf"\s+(ROOT )?{_NAME} = ", line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # attributes may go on over lines
    if entry is None:
        raise ValueError("The HLO text has no ENTRY computation.")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    stop = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shapes = tuple(_shape(found) for found in _LEAF.finditer(right[:stop]))
    opcode = re.match(r"\s*([\w\-]+)\(", right[stop:])
    if not opcode:
        raise ValueError(f"This line of HLO is no instruction: {line[:200]!r}")
    begin = stop + opcode.end() - 1
    end = _closing(right, begin)
    argument = right[begin + 1 : end]
    return Instruction(
        name=left.split("%", 1)[1].strip(),
        opcode=opcode[1],
        shapes=shapes,
        operands=tuple(name[1:] for name in re.findall(_NAME, argument)),
        argument=argument,
        attributes=right[end + 1 :],
        is_root=left.lstrip().startswith("ROOT"),
    )


def _closing(text: str, begin: int) -> int:
    """Index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    raise ValueError(f"Parentheses do not match in HLO: {text[begin : begin + 200]!r}")


def _shape(found: re.Match) -> Shape:
    dims = tuple(int(re.sub(r"\D", "", n)) for n in found["dims"].split(",") if n.strip())
    layout = found["layout"] or ""
    order, _, rest = layout.partition(":")
    tiles = rest[rest.index("T") :] if "T" in rest else ""
    tile = _TILE.search(tiles)
    space = re.search(r"S\((\d+)\)", rest)
    return Shape(
        found["dtype"],
        dims,
        tuple(int(n) for n in order.split(",") if n),
        tuple(int(n) for n in tile[1].split(",")) if tile else (),
        int(space[1]) if space else 0,
    )
