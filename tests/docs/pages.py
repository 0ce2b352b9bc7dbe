"""Reads Markdown pages and docstrings: blocks of Python, command lines, links."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("results/README.md"),
        *ROOT.glob("launch/**/README.md"),
    }
)
DOCSTRINGS = sorted({*ROOT.glob("launch/**/*.py"), *ROOT.glob("examples/*.py")})

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(r"(?:python3? -m launch\b|python3? [\w/]+\.py\b|rec2pm |make [a-z-]+)")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


class Block(NamedTuple):
    """A fenced block: where it begins, its language ("" if none is named) and its text."""

    line: int
    language: str
    text: str


class Command(NamedTuple):
    """One command line of a page.

    Attributes:
      place: FILE:LINE.
      words: program and arguments.
      complete: whether it is meant to be run as it is, not quoted in a sentence or cut by "...".
    """

    place: str
    words: list[str]
    complete: bool


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    return [
        Block(text.count("\n", 0, m.start()) + 1, m[2], re.sub(f"^{m[1]}", "", m[3], flags=re.M))
        for m in _FENCE.finditer(text)
    ]


def links(text: str) -> list[tuple[int, str]]:
    """Return (line, target) of every link outside of code."""
    prose = _INLINE.sub(_blank, _FENCE.sub(_blank, text))
    return [(prose.count("\n", 0, m.start()) + 1, m[1]) for m in _LINK.finditer(prose)]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*?) *$", _FENCE.sub("", text), re.M)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return set(plain)


def page_commands(page: Path) -> Iterator[Command]:
    """Yield the command lines of a page: those of shell blocks, and those quoted in sentences."""
    text = page.read_text()
    for block in blocks(text):
        if block.language in ("sh", "bash", "shell", "console"):
            yield from _lines(page, block.line + 1, block.text)
    prose = _FENCE.sub(_blank, text)
    for match in _INLINE.finditer(prose):
        line = prose.count("\n", 0, match.start()) + 1
        yield from _split(f"{_name(page)}:{line}", match[1].replace("\n", " "), complete=False)


def docstring_commands(file: Path) -> Iterator[Command]:
    """Yield the command lines of a module's docstring: lines that begin with one."""
    docstring = ast.get_docstring(ast.parse(file.read_text())) or ""
    lines = re.sub(r"^( *)Command: +", r"\1", docstring, flags=re.M)
    yield from _lines(file, 1, lines)


def extras_named(text: str) -> set[str]:
    """Return the extras in texts such as pip install 'rec2pm_jax[demo]' or '.[dev,tpu]'."""
    found = re.findall(r"(?:rec2pm_jax|[\s'\"]\.)\[([a-z,]+)\]", text)
    return {extra for names in found for extra in names.split(",")}


def _lines(file: Path, first: int, text: str) -> Iterator[Command]:
    joined, start = "", first
    for number, line in enumerate(text.split("\n"), first):
        joined, start = (joined + line, start) if joined else (line, number)
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if _COMMAND.search(joined):
            yield from _split(f"{_name(file)}:{start}", joined.removeprefix("$ "), complete=True)
        joined = ""


def _split(place: str, line: str, complete: bool) -> Iterator[Command]:
    """Yield the commands of one line that may join several with ; && | or &."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>()")
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError:  # an apostrophe of a sentence
        tokens = line.split()
    words: list[str] = []
    for token in [*tokens, ";"]:
        if not set(token) <= set(";&|<>()"):
            words.append(token)
            continue
        while words and _ASSIGNMENT.match(words[0]):
            del words[0]
        if words and _COMMAND.match(" ".join(words) + " "):
            cut = [word for word in words if word.strip(".") == ""]
            kept = [word for word in words if word not in cut]
            yield Command(place, kept, complete and not cut)
        words = []


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))
