"""The list of configuration fields: parsed from docstrings, and up to date in docs/training.md."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rec2pm_jax.config import Config
from rec2pm_jax.config_fields import BEGIN, END, list_fields, replace_section, to_markdown

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Inner:
    """Options of one method.

    Attributes:
      slots: C, memory tokens per group.
    """

    slots: int = 4


@dataclasses.dataclass(frozen=True)
class Section:
    """How a model is trained.

    More about it.

    Attributes:
      steps: number of updates: the run ends there,
        or earlier.
      kind: "a" | "b".
      b1: first moment.
      b2: second moment.

    Rarely changed: b1 and
    b2.
    """

    steps: int = 2000
    kind: str = "a"
    b1: float = 0.9
    b2: float | None = None
    inner: Inner = Inner()


@dataclasses.dataclass(frozen=True)
class Root:
    """Everything."""

    train: Section = Section()


def test_texts_defaults_and_rarely_changed_fields_are_those_of_the_dataclass():
    (path, summary, fields), (inner_path, _, inner) = list_fields(Root())
    assert (path, summary, inner_path) == ("train", "How a model is trained.", "train.inner")
    found = {field.name: (field.default, field.text, field.rare) for field in fields}
    assert found == {
        "train.steps": (2000, "number of updates: the run ends there, or earlier.", False),
        "train.kind": ("a", '"a" | "b".', False),
        "train.b1": (0.9, "first moment.", True),
        "train.b2": (None, "second moment.", True),
    }
    assert [field.name for field in inner] == ["train.inner.slots"]


def test_tables_group_the_rarely_changed_fields():
    text = to_markdown(Root())
    usual, rare = text.split("Rarely changed:")
    assert "| `train.steps` | `2000` | number of updates" in usual
    assert '| `train.kind` | `a` | "a" \\| "b". |' in usual
    assert "| `train.b2` | `None` | second moment. |" in rare and "b1" not in usual
    assert rare.index("### `train.inner`") < rare.index("`train.inner.slots`")


def test_a_text_of_an_unknown_field_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Stale:
        """A section.

        Attributes:
          gone: was deleted.
        """

        steps: int = 1

    @dataclasses.dataclass(frozen=True)
    class Holder:
        section: Stale = Stale()

    with pytest.raises(ValueError, match="Stale describes unknown fields: gone"):
        to_markdown(Holder())


@pytest.mark.parametrize("page", ["no markers", f"{BEGIN} but no end", f"{END} alone"])
def test_a_page_without_markers_is_refused(page):
    with pytest.raises(ValueError, match="needs the markers"):
        replace_section(page, "text")


def test_the_page_is_up_to_date():
    page = (ROOT / "docs/training.md").read_text()
    message = "run: python -m launch.list_fields --page=docs/training.md"
    assert page == replace_section(page, to_markdown(Config())), message


def test_every_field_is_documented():
    fields = [field for *_, fields in list_fields(Config()) for field in fields]
    assert [field.name for field in fields if not field.text] == []
