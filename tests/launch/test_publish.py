"""The pages of docs/ hold what the records say."""

from __future__ import annotations

import pytest

from launch.experiments.publish import fill
from rec2pm_jax.errors import UserError


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
