"""An index of the code: files, modules, classes, members, flags and words. Nothing is imported."""

from __future__ import annotations

import ast
import dataclasses
import io
import re
import sys
import tokenize
from functools import cache
from pathlib import Path

from tests.docs.pages import ROOT

CODE = [
    file for room in ("rec2pm_jax", "launch", "examples") for file in ROOT.glob(f"{room}/**/*.py")
]
# Without the files of this folder, whose lists are no code.
TESTS = [file for file in ROOT.glob("tests/**/*.py") if file.parent != Path(__file__).parent]
_ALL_CODE = [*CODE, *TESTS, *ROOT.glob("docs/*.py"), ROOT / "conftest.py"]

# Packages and classes of others.
EXTERNAL = frozenset(
    "jax jnp np numpy optax flax orbax grain polars lax nn json torch ml_collections tensorboardX "
    "Compiled".split()
)
_STARTS = (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)  # a string after them is a docstring
_STRINGS = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))  # 3.12 has both


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
        before = tokenize.NEWLINE
        for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
            if token.type == tokenize.NAME:
                found.add(token.string)
            elif token.type in _STRINGS and before not in _STARTS:
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
def module_scope(file: Path) -> Scope:
    """Return what a module defines."""
    return Scope(_definitions(ast.parse(file.read_text()).body))


@cache
def _classes() -> dict[str, list[Scope]]:
    """Return all classes by name."""
    found: dict[str, list[Scope]] = {}
    for file in _ALL_CODE:
        for name, scope in module_scope(file).names.items():
            if scope is not None:
                found.setdefault(name, []).append(scope)
    return found


def _definitions(body: list[ast.stmt]) -> dict[str, Scope | None]:
    """Return the names that statements define."""
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


def resolves(name: str) -> bool:
    """Return whether a dotted name is a field of the configuration, or something in our code."""
    first, _, rest = name.partition(".")
    if first in EXTERNAL or first in sys.stdlib_module_names:
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
        else module_scope(file).has(rest)
        for file in _modules().get(first, [])
    )


def _is_in_package(folder: Path, name: str) -> bool:
    """Return whether a name such as package.module.function exists below a folder."""
    first, _, rest = name.partition(".")
    if (folder / f"{first}.py").is_file():
        return not rest or module_scope(folder / f"{first}.py").has(rest)
    init = folder / first / "__init__.py"
    if not init.is_file():
        return False
    lazy = f'"{rest}"' in init.read_text()  # a name that `__getattr__` imports
    return not rest or lazy or module_scope(init).has(rest) or _is_in_package(folder / first, rest)


@cache
def _config() -> Scope:
    """Return the sections of the configuration with their fields."""
    folder = ROOT / "rec2pm_jax/config"
    classes = module_scope(folder / "model.py").names | module_scope(folder / "training.py").names
    sections = ("data", "model", "method", "loss", "optim", "train", "compute")
    return Scope({name: classes[f"{name.capitalize()}Config"] for name in sections})
