"""The pages of docs/ hold what the records say."""

from __future__ import annotations

import numpy as np
import pytest

from launch.experiments.publish import fill
from launch.experiments.result_tables import (
    OVERVIEW,
    OVERVIEW_ROWS,
    tabulate_overview,
    tabulate_request_time,
)
from launch.experiments.rows import KNOWN_TIME, UNKNOWN_TIME, Row, choose_for_main
from rec2pm_jax.errors import UserError


def row(variant, value, trained=True):
    record = {
        "config_hash": "0" if trained else None,
        "state_bytes_per_user": 1024 if variant == "rec2pm_o" else 0,
        "metrics": {"ndcg@10": value},
    }
    return Row(variant, [record], np.array([[value, value]]), np.array([30, 40]))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_of_a_heuristic_the_better_form_stands_beside_models_that_know_the_time():
    rows = [
        row(f"popularity{KNOWN_TIME}", 0.4, trained=False),
        row("rec2pm_o", 0.3),
        row(f"rec2pm_o{UNKNOWN_TIME}", 0.2),
        row("popularity", 0.1, trained=False),
        row("personal_frequency (window 16)", 0.1, trained=False),
    ]
    chosen = [one.variant for one in choose_for_main(rows)]
    assert chosen == [f"popularity{KNOWN_TIME}", "rec2pm_o"]


def test_the_overview_has_the_best_of_each_dataset_in_bold():
    """Films have no times, so their heuristics have one form."""
    datasets = {}
    for number, name in enumerate(OVERVIEW):
        suffix = "" if name == "ml1m_200" else KNOWN_TIME
        datasets[name] = [
            row(f"{variant}{suffix}", value, trained=False)
            if variant == "counts_and_transitions"
            else row(variant, value)
            for variant, value in zip(
                OVERVIEW_ROWS.values(), np.roll(np.linspace(0.9, 0.3, 7), number), strict=True
            )
        ]
    header, _, *body = map(cells, tabulate_overview(datasets))
    assert header == ["method", *OVERVIEW.values(), "state, bytes"]
    assert [line[0] for line in body] == list(OVERVIEW_ROWS)
    assert body[0][1:] == ["**90.00**", "30.00", "40.00", "50.00", "1,024"]
    assert body[1][1:] == ["80.00", "**90.00**", "30.00", "40.00", "-"]


def test_the_time_of_the_request_is_worth_a_ratio():
    rows = [row("full", 0.4), row(f"full{UNKNOWN_TIME}", 0.2), row("recent", 0.1)]
    *_, line = tabulate_request_time(rows)
    assert cells(line) == ["full", "40.00", "20.00", "0.500 (0.500..0.500)"]


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
