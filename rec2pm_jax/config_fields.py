"""List the fields of a configuration as Markdown, from the dataclasses that define them.

The text of a field is its entry in the `Attributes:` section of the dataclass's docstring. A
paragraph `Rarely changed: name, name.` in the docstring names fields that few users touch.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

BEGIN = "<!-- config fields: generated -->"
END = "<!-- end -->"


@dataclasses.dataclass(frozen=True)
class FieldText:
    """One field of a configuration.

    Attributes:
      name: path from the root, as in `--config.NAME`.
      default: the default value.
      text: what the field means; empty if its dataclass does not say.
      rare: whether few users touch it.
    """

    name: str
    default: Any
    text: str
    rare: bool


def list_fields(config: Any) -> Iterator[tuple[str, str, list[FieldText]]]:
    """Yield the sections of a configuration.

    Args:
      config: an instance of a dataclass that holds sections, dataclasses themselves.

    Yields:
      Path of the section, first line of its docstring, and its fields.

    Raises:
      ValueError: a docstring describes a field that does not exist.
    """
    for field in dataclasses.fields(config):
        section = getattr(config, field.name)
        if dataclasses.is_dataclass(section):
            yield from _list_section(section, field.name)


def to_markdown(config: Any) -> str:
    """Return one table of fields per section, rarely changed fields in a second table.

    Args:
      config: as in `list_fields`.

    Raises:
      ValueError: as `list_fields` does.
    """
    parts = []
    for path, summary, fields in list_fields(config):
        parts.append(f"### `{path}`\n\n{summary}")
        usual = [field for field in fields if not field.rare]
        rare = [field for field in fields if field.rare]
        if usual:
            parts.append(_table(usual))
        if rare:
            parts.append(f"Rarely changed:\n\n{_table(rare)}")
    return "\n\n".join(parts)


def replace_section(page: str, markdown: str) -> str:
    """Return a page with `markdown` between the markers BEGIN and END.

    Raises:
      ValueError: a marker is missing.

    >>> replace_section(f"Fields:\\n{BEGIN}\\nold\\n{END}\\n", "new").splitlines()
    ['Fields:', '<!-- config fields: generated -->', '', 'new', '', '<!-- end -->']
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{markdown}\n\n{END}{after}"


def _list_section(section: Any, path: str) -> Iterator[tuple[str, str, list[FieldText]]]:
    """Yield a section and the sections inside it."""
    doc = inspect.getdoc(type(section)) or ""
    texts, rare = _parse_attributes(doc), _parse_rare(doc)
    values = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
    unknown = sorted((texts.keys() | rare) - values.keys())
    if unknown:
        raise ValueError(f"{type(section).__name__} describes unknown fields: {', '.join(unknown)}")
    plain = {n: v for n, v in values.items() if not dataclasses.is_dataclass(v)}
    fields = [FieldText(f"{path}.{n}", v, texts.get(n, ""), n in rare) for n, v in plain.items()]
    yield path, doc.partition("\n")[0], fields
    for name, value in values.items():
        if name not in plain:
            yield from _list_section(value, f"{path}.{name}")


def _parse_attributes(doc: str) -> dict[str, str]:
    """Return the entries of the `Attributes:` section of a docstring: {name: text}."""
    texts: dict[str, str] = {}
    _, _, body = doc.partition("\nAttributes:\n")
    name, indent = "", None
    for line in body.split("\n"):
        if line.strip() and not line.startswith(" "):
            break  # the next section
        width = len(line) - len(line.lstrip())
        entry = re.match(r"\s+(\w+): (.*)", line)
        if entry and width == (indent or width):
            name, indent = entry[1], width
            texts[name] = entry[2].strip()
        elif name and line.strip():
            texts[name] += " " + line.strip()
    return texts


def _parse_rare(doc: str) -> set[str]:
    """Return the names in the paragraph `Rarely changed:` of a docstring."""
    found = re.search(r"^Rarely changed:(.*?)(?:\n\s*\n|\Z)", doc, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"\w+", found[1])) - {"and"} if found else set()


def _table(fields: list[FieldText]) -> str:
    """Return a Markdown table of fields."""
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for field in fields:
        default = "''" if field.default == "" else field.default
        text = field.text.replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{default}` | {text} |")
    return "\n".join(rows)
