"""Parses the text of optimised HLO into computations of instructions; depends on nothing else."""

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
      dtype: as HLO names it.
      dims: logical sizes.
      minor_to_major: the order of dimensions in memory, the fastest first.
      tile: what the last dimensions are padded to multiples of.
      space: memory space, 0 for HBM and 1 for a TPU's vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = 0

    @property
    def elements(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits of one element."""
        if self.dtype in _BITS:
            return _BITS[self.dtype]
        found = re.search(r"\d+", self.dtype)
        if found is None:
            raise ValueError(f"HLO names an unknown type: {self.dtype}")
        return int(found[0])

    @property
    def bytes(self) -> int:
        """Bytes in memory, with the padding of tiles."""
        physical = [self.dims[i] for i in reversed(self.minor_to_major)] or list(self.dims)
        for place, size in enumerate(reversed(self.tile), 1):
            if place <= len(physical):
                physical[-place] = -(-physical[-place] // size) * size
        return math.prod(physical) * self.bits // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: name = shapes opcode(operands), attributes. A tuple has several shapes."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    argument: str  # the text between the parentheses: a constant's value, a parameter's number
    attributes: str
    is_root: bool

    @property
    def shape(self) -> Shape:
        """The shape of the result, or of its first part."""
        return self.shapes[0]

    def attribute(self, name: str) -> str:
        """Return a word such as LT of `direction=LT` or name of `calls=%name`; '' if it is missing."""
        found = re.search(rf'\b{name}="?%?([\w.\-]+)', self.attributes)
        return found[1] if found else ""

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return a list such as (1, 2) of `lhs_contracting_dims={1,2}`."""
        found = re.search(rf"\b{name}=\{{([\d,]*)\}}", self.attributes)
        return tuple(int(n) for n in found[1].split(",") if n) if found else ()

    def called(self) -> tuple[str, ...]:
        """Return the names of the computations it runs: fused ones, bodies, branches."""
        found = re.findall(rf"\b(?:calls|to_apply|body|condition)=({_NAME})", self.attributes)
        found += re.findall(rf"\b(?:true|false)_computation=({_NAME})", self.attributes)
        for group in re.findall(r"\bbranch_computations=\{([^}]*)\}", self.attributes):
            found += re.findall(_NAME, group)
        return tuple(name[1:] for name in found)

    @property
    def op_name(self) -> str:
        """Where the program made this instruction, as JAX names it."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A list of instructions with one result."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {i.name: i for i in self.instructions}

    @cached_property
    def root(self) -> Instruction:
        """The instruction that makes the result."""
        return next((i for i in self.instructions if i.is_root), self.instructions[-1])

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that read each value, by its name."""
        found: dict[str, list[Instruction]] = {i.name: [] for i in self.instructions}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @cached_property
    def parameters(self) -> list[Instruction]:
        """The parameters in order."""
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.argument))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, and the one that runs first."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """Parse the text of `Compiled.as_text()`.

    Raises:
      ValueError: there is no entry computation, or a line is no instruction.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    name: str | None = None
    lines: list[str] = []
    for line in text.splitlines():
        header = re.match(rf"(ENTRY )?({_NAME}) .*\{{$", line)
        if header:
            name, lines = header[2][1:], []
            entry = name if header[1] else entry
        elif name is None:
            continue
        elif line.startswith("}") and len(line) == 1:
            computations[name] = Computation(name, tuple(map(_parse_instruction, lines)))
            name = None
        elif re.match(rf"\s+(ROOT )?{_NAME} = ", line):
            lines.append(line)
        elif lines:
            lines[-1] += line  # attributes may continue on further lines
    if entry is None:
        raise ValueError("The HLO text has no ENTRY computation.")
    return Module(computations, entry)


def _parse_instruction(line: str) -> Instruction:
    left, right = line.split(" = ", 1)
    stop = _find_closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shapes = tuple(_parse_shape(found) for found in _LEAF.finditer(right[:stop]))
    opcode = re.match(r"\s*([\w\-]+)\(", right[stop:])
    if not opcode:
        raise ValueError(f"This line of HLO is no instruction: {line[:200]!r}")
    begin = stop + opcode.end() - 1
    end = _find_closing(right, begin)
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


def _find_closing(text: str, begin: int) -> int:
    """Return the index of the parenthesis that closes the one at `begin`."""
    depth = 0
    for found in re.finditer(r"[()]", text[begin:]):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return begin + found.start()
    raise ValueError(f"Parentheses do not match in HLO: {text[begin : begin + 200]!r}")


def _parse_shape(found: re.Match[str]) -> Shape:
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
