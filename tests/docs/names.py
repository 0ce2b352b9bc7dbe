"""Finds the files, names and flags that texts mention, and tells which of them do not exist.

A text is a page, or the docstrings and comments of a module.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.docs.code_index import flags, module_scope, resolves, words
from tests.docs.pages import ROOT

# Flags of other programs: absl, pip, pytest, Beam's runners, TensorBoard, Docker, Triton.
OTHER_FLAGS = frozenset(
    "help helpfull verbosity upgrade editable doctest-modules runner logdir "
    "build gpus user model-repository".split()
)
# What the reader chooses, and files and folders that commands write.
PLACEHOLDERS = frozenset(
    "my/preset.py path/to/mine.py config.section.field config.NAME flag SUITE.md RESULTS/SUITE.md "
    "raw_ids/ checkpoints/ checkpoints/STEP/ train/tensorboard/ unreadable_checkpoints/ dropped/ "
    "delta-NNNNN/ speed/ read.bin update.bin best.py WORKDIR/best.py tune.md study.journal "
    "runs/NNNN/".split()
)
# What version 0.2 deleted or renamed. Only these two pages tell history.
HISTORY = frozenset({"CHANGELOG.md", "docs/lab_notes.md"})
DELETED = frozenset(
    "consistency_ramp consistency_reduction stop_target reference_ar in_batch log_q copy_init "
    "config.model.copy_init config.method.live config.loss.kind launch.inspect launch/suites.py "
    "config.method.sketch config.optim.table config.method.running_mean rec2pm_sketch "
    "config.data.holdout_fraction config.compute.recompute full_sketch tok_serial_sketch "
    "tables.py figures.py train/ evaluate/ absolute_positions scan_layers decay_steps "
    "keep_checkpoints".split()
)
# Kinds of files that commands write and texts name without a path.
_DATA_FILE = re.compile(
    r"[\w*<>./-]+\.(jsonl?|csv|tsv|npy|npz|png|gz|zip|parquet|rds|dat|html|mdb|txt|toml|events)"
)

_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"(?<![\w/.:<{*-])((?:[\w-]+/)+[\w-]+\.(?:py|md|sh|svg))(?![\w*])")
_FILE_THEN_NAME = re.compile(r"`([\w/-]+\.py)`,? `([A-Za-z_][\w.]*)`")
_DOTTED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)(?:\(.*\))?")
_IDENTIFIER = re.compile(r"[A-Za-z]\w*_\w+|_\w+|[A-Z][a-z]+(?:[A-Z][a-z]*)+")
_FLAG = re.compile(r"(?<![\w-])--(?:no)?([a-z][\w.-]*\w)")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text that names code.

    Attributes:
      file: where it is.
      lines: (line number, line); of a module, only those of docstrings and comments.
    """

    file: Path
    lines: tuple[tuple[int, str], ...]

    def spans(self) -> Iterator[tuple[int, str]]:
        """Yield (line, code) of everything between backticks."""
        for number, line in self.lines:
            for match in _CODE_SPAN.finditer(line):
                yield number, match[1]


def text_of_page(page: Path) -> Text:
    """Return all lines of a page."""
    return Text(page, tuple(enumerate(page.read_text().split("\n"), 1)))


def text_of_module(file: Path) -> Text:
    """Return the docstrings and comments of a module."""
    source = file.read_text()
    lines: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                first = node.body[0]
                assert first.end_lineno is not None
                for number in range(first.lineno, first.end_lineno + 1):
                    lines[number] = source.split("\n")[number - 1]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string
    return Text(file, tuple(sorted(lines.items())))


def missing(text: Text) -> list[str]:
    """Return "FILE:LINE: what does not exist" for a text."""
    place = str(text.file.relative_to(ROOT))
    known = PLACEHOLDERS | (DELETED if place in HISTORY else frozenset())
    bad: list[tuple[int, str]] = []

    def check(number: int, exists: bool, name: str, what: str) -> None:
        if not exists and name not in known:
            bad.append((number, what))

    for number, line in text.lines:
        for path in _PATH.findall(line):
            check(number, _finds(path, text.file), path, f"there is no {path}")
        for path, name in _FILE_THEN_NAME.findall(line):
            file = find_file(path, text.file)
            if file is not None and not name.endswith(".py"):
                check(number, module_scope(file).has(name), name, f"{path} has no {name}")
        for flag in _FLAG.findall(line):
            check(number, _is_flag(flag), flag, f"there is no flag --{flag}")
    for number, code in text.spans():
        dotted = _DOTTED.fullmatch(code)
        if re.fullmatch(r"[\w-]+\.(py|md|typed)|(?:[\w-]+/)+", code):
            check(number, _finds(code, text.file), code, f"there is no {code}")
        elif dotted and not _DATA_FILE.fullmatch(code):
            exists = resolves(dotted[1]) or _is_attribute(dotted[1], text.file)
            check(number, exists, dotted[1], f"there is no {code}")
        elif _IDENTIFIER.fullmatch(code):
            check(number, code in words(), code, f"no code has the word {code}")
    return [f"{place}:{number}: {what}" for number, what in sorted(set(bad))]


def find_file(path: str, page: Path) -> Path | None:
    """Return the file or folder that a text means: from a folder above it, or in a package.

    docs/data.md is about rec2pm_jax/data, and so on.
    """
    library = ROOT / "rec2pm_jax"
    for folder in (*page.parents, library, ROOT / "launch", library / page.stem):
        if (folder / path).exists() and folder.is_relative_to(ROOT):
            return folder / path
    return None


def _finds(path: str, page: Path) -> bool:
    return find_file(path, page) is not None


def _is_flag(flag: str) -> bool:
    if flag.startswith("config."):
        return resolves(flag)
    return flag.startswith("xla_") or bool(
        {flag, f"no{flag}"} & (flags() | OTHER_FLAGS | {"config"})
    )


def _is_attribute(name: str, file: Path) -> bool:
    """Return whether a docstring names an attribute of a parameter or field, as in `options.input`."""
    if file.suffix != ".py":
        return False
    first, *rest = name.split(".")
    variables = {"state", "search", "options"}
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.arg):
            variables.add(node.arg)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            variables.add(node.target.id)
    return first in variables and set(rest) <= words() | {"nbytes"}
