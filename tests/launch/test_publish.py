"""The pages of docs/ hold what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.experiments.publish import fill, generate_pages
from rec2pm_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_tables_of_the_docs_are_those_of_the_records():
    for path, text in generate_pages(ROOT / "results/v0.1", ROOT / "docs").items():
        assert path.read_text() == text, f"{path}: run python -m launch.experiments.publish"


def test_filling_replaces_what_is_between_the_comments_only():
    tables = {"a": lambda: ["| new |", "| --- |"]}
    filled = fill("before\n<!-- table: a -->\n| old |\n<!-- /table -->\nafter\n", tables)
    assert filled == ("before\n<!-- table: a -->\n\n| new |\n| --- |\n\n<!-- /table -->\nafter\n")
    assert fill(filled, tables) == filled


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- table: mian -->\n<!-- /table -->", 'no table mian. Did you mean "main"'),
        ("<!-- table: main -->\n", "1 tables begin .* 0 are closed"),
    ],
)
def test_unknown_and_open_tables_are_refused(page, message):
    with pytest.raises(UserError, match=message):
        fill(page, {"main": lambda: []})
