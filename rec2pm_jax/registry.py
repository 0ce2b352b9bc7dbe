"""Registries: named implementations that live one per file in a package.

A new method or backbone is one new file. The file registers itself with a decorator, and the registry
imports all files of the package before the first lookup.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from rec2pm_jax.errors import UserError, nearest

T = TypeVar("T", bound=Callable)


class Entry(NamedTuple, Generic[T]):
    """A registered implementation.

    Attributes:
      build: what the decorator was applied to.
      reads: names of the optional configuration fields that the implementation reads.
    """

    build: T
    reads: frozenset[str]


class Registry(Generic[T]):
    """Implementations by the name that a configuration field gives them."""

    def __init__(self, field: str, package: str) -> None:
        """Create an empty registry.

        Args:
          field: the configuration field that holds a name, for messages.
          package: the package whose modules register themselves when they are imported.
        """
        self._field, self._package = field, package
        self._entries: dict[str, Entry[T]] = {}
        self._imported = False

    def register(self, name: str, *, reads: tuple[str, ...] = ()) -> Callable[[T], T]:
        """Return a decorator that registers what it is applied to.

        Args:
          name: the name that configurations use. A second registration replaces the first.
          reads: names of the optional configuration fields that the implementation reads.
        """

        def decorator(build: T) -> T:
            self._entries[name] = Entry(build, frozenset(reads))
            return build

        return decorator

    def names(self) -> tuple[str, ...]:
        """Return all registered names, sorted."""
        self._import_package()
        return tuple(sorted(self._entries))

    def __getitem__(self, name: str) -> Entry[T]:
        """Return what is registered under `name`.

        Raises:
          UserError: nothing is; the message has the nearest name and the list of all.
        """
        self._import_package()
        if name not in self._entries:
            raise UserError(
                f"config.{self._field}={name!r} is unknown; choose one of {', '.join(self.names())}."
                f"{nearest(name, self._entries)}"
            )
        return self._entries[name]

    def _import_package(self) -> None:
        if self._imported:
            return
        self._imported = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
