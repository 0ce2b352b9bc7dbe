"""Finds the files, names and flags that texts mention, and tells which of them do not exist.

Code is parsed, not imported. A text is a page, or the docstrings and comments of a module.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

CODE = [
    file for room in ("rec2pm_jax", "launch", "examples") for file in ROOT.glob(f"{room}/**/*.py")
]
_ALL_CODE = [*CODE, *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/*.py"), ROOT / "conftest.py"]

# Packages and classes of others.
EXTERNAL = frozenset(
    "jax jnp np numpy optax flax orbax grain polars lax nn json torch ml_collections Compiled".split()
)
# Flags of other programs: absl, pip, pytest, Beam's runners, TensorBoard.
OTHER_FLAGS = frozenset(
    "help helpfull verbosity upgrade editable doctest-modules runner logdir".split()
)
# What the reader chooses, and files and folders that commands write.
PLACEHOLDERS = frozenset(
    "my/preset.py path/to/mine.py config.section.field config.NAME flag SUITE.md RESULTS/SUITE.md "
    "checkpoints/ checkpoints/STEP/ train/tensorboard/ unreadable_checkpoints/ dropped/ delta-NNNNN/ "
    "speed/ read.bin update.bin".split()
)
# What version 0.2 deleted or renamed. Only these two pages tell history.
HISTORY = frozenset({"CHANGELOG.md", "docs/lab_notes.md"})
DELETED = frozenset(
    "consistency_ramp consistency_reduction stop_target reference_ar in_batch log_q copy_init "
    "config.model.copy_init config.method.live config.loss.kind launch.inspect launch/suites.py "
    "tables.py figures.py train/ evaluate/ absolute_positions scan_layers decay_steps "
    "keep_checkpoints".split()
)
# Kinds of files that commands write and texts name without a path.
_DATA_FILE = re.compile(
    r"[\w*<>./-]+\.(jsonl?|csv|tsv|npy|npz|png|gz|zip|parquet|rds|dat|html|mdb|txt|toml|events)"
)

_STARTS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)  # a string after them is a docstring
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
                check(number, _module(file).has(name), name, f"{path} has no {name}")
        for flag in _FLAG.findall(line):
            check(number, _is_flag(flag), flag, f"there is no flag --{flag}")
    for number, code in text.spans():
        dotted = _DOTTED.fullmatch(code)
        if re.fullmatch(r"[\w-]+\.(py|md|typed)|(?:[\w-]+/)+", code):
            check(number, _finds(code, text.file), code, f"there is no {code}")
        elif dotted and not _DATA_FILE.fullmatch(code):
            exists = _resolves(dotted[1]) or _is_attribute(dotted[1], text.file)
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
        return _resolves(flag)
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


@cache
def flags() -> frozenset[str]:
    """Return the names of all flags that commands define."""
    define = r"(?:DEFINE_\w+|add_argument|addoption|define)\(\s*\"(?:--)?([\w-]+)\""
    return frozenset(f for file in _ALL_CODE for f in re.findall(define, file.read_text()))


@cache
def words() -> frozenset[str]:
    """Return the names in the code, and the words in its strings; docstrings and comments excluded."""
    found: set[str] = set()
    for file in _ALL_CODE:
        if file.parent == Path(__file__).parent:  # the lists above are no code
            continue
        before = tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            if token.type == tokenize.NAME:
                found.add(token.string)
            elif token.type == tokenize.STRING and before not in _STARTS:
                found |= set(re.findall(r"\w+", token.string))
            if token.type not in (tokenize.NL, tokenize.COMMENT):
                before = token.type
    for name in ("Makefile", "pyproject.toml"):
        found |= set(re.findall(r"\w+", (ROOT / name).read_text()))
    return frozenset(found)


@dataclasses.dataclass
class Scope:
    """A module or a class.

    Attributes:
      names: what it defines; None for what is no class.
      bases: names of a class's base classes.
    """

    names: dict[str, Scope | None]
    bases: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Return whether a dotted name is in here or in a base class."""
        first, _, rest = name.partition(".")
        if first in self.names:
            inner = self.names[first]
            return not rest or inner is None or inner.has(rest)
        return any(scope.has(name) for base in self.bases for scope in _classes().get(base, []))


@cache
def _module(file: Path) -> Scope:
    return Scope(_definitions(ast.parse(file.read_text()).body))


@cache
def _classes() -> dict[str, list[Scope]]:
    """Return all classes by name."""
    found: dict[str, list[Scope]] = {}
    for file in _ALL_CODE:
        for name, scope in _module(file).names.items():
            if scope is not None:
                found.setdefault(name, []).append(scope)
    return found


def _definitions(body: list[ast.stmt]) -> dict[str, Scope | None]:
    names: dict[str, Scope | None] = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            bases = tuple(
                base.attr if isinstance(base, ast.Attribute) else base.id
                for base in node.bases
                if isinstance(base, ast.Attribute | ast.Name)
            )
            inside = _definitions(node.body)
            for part in ast.walk(node):  # self.x = ..
                if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                    inside.setdefault(part.attr, None)
            names[node.name] = Scope(inside, bases)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = None
        elif isinstance(node, ast.If | ast.Try):
            names |= _definitions(node.body)
        else:
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            for part in (part for target in targets if target for part in ast.walk(target)):
                if isinstance(part, ast.Name):
                    names[part.id] = None
    return names


@cache
def _modules() -> dict[str, list[Path]]:
    """Return modules by their last name."""
    found: dict[str, list[Path]] = {}
    for file in _ALL_CODE:
        name = file.parent.name if file.stem == "__init__" else file.stem
        found.setdefault(name, []).append(file)
    return found


def _resolves(name: str) -> bool:
    """Return whether a dotted name is a field of the configuration, or something in our code."""
    first, _, rest = name.partition(".")
    if first in EXTERNAL:
        return True
    if first == "self":
        return rest.split(".")[0] in words()
    if _config().has(name.removeprefix("config.")):
        return True
    if any(scope.has(rest) for scope in _classes().get(first, [])):
        return True
    if first in ("rec2pm_jax", "launch", "tests"):
        return _is_in_package(ROOT, name)
    return any(
        _is_in_package(file.parent.parent, name)
        if file.stem == "__init__"
        else _module(file).has(rest)
        for file in _modules().get(first, [])
    )


def _is_in_package(folder: Path, name: str) -> bool:
    """Return whether a name such as package.module.function exists below a folder."""
    first, _, rest = name.partition(".")
    if (folder / f"{first}.py").is_file():
        return not rest or _module(folder / f"{first}.py").has(rest)
    init = folder / first / "__init__.py"
    if not init.is_file():
        return False
    lazy = f'"{rest}"' in init.read_text()  # a name that `__getattr__` imports
    return not rest or lazy or _module(init).has(rest) or _is_in_package(folder / first, rest)


@cache
def _config() -> Scope:
    """Return the sections of the configuration with their fields."""
    classes = _module(ROOT / "rec2pm_jax/config.py").names
    sections = ("data", "model", "method", "loss", "optim", "train", "compute")
    return Scope({name: classes[f"{name.capitalize()}Config"] for name in sections})
