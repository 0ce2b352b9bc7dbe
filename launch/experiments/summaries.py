"""The page of each suite, `SUITE.md`, and its figure, `SUITE.png`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launch.experiments import figures, memory_tables, tables
from launch.experiments.results_file import SuiteResults
from launch.experiments.rows import LONG, Row, Tables, collect_rows
from launch.experiments.run import DATASETS
from rec2pm_jax.json_file import replaced_file


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a suite is shown.

    Attributes:
      introduction: one paragraph.
      format: rows of one dataset and backbone -> lines of markdown.
      draw: writes the figure of all tables to a PNG, if there is one to draw.
    """

    introduction: str
    format: Callable[[Sequence[Row]], list[str]]
    draw: Callable[[Tables, Path], None] | None = None


def _format_main(rows: Sequence[Row]) -> list[str]:
    lines = tables.tabulate_comparison(rows, ("full", "recent"))
    count = int(rows[0].select_users(long=True).sum())
    if count:
        lines += ["", f"Users with at least {LONG} events ({count}):", ""]
        lines += tables.tabulate_comparison(rows, ("full", "recent"), long=True)
    return lines


def _format_lifelong(rows: Sequence[Row]) -> list[str]:
    lines = ["NDCG@10 by events before the last target:", "", *tables.tabulate_lengths(rows)]
    drift = tables.tabulate_drift(rows)
    if drift:
        lines += [
            "",
            "Squared distance of iterated from one-time memory after so many updates, as a "
            "share of the variance between users (number of users):",
            "",
            *drift,
        ]
    return lines


SUMMARIES = {
    "main": Summary(
        "All methods with the same backbone, data, budget and optimiser, those of `make demo`; states "
        "are evaluated in int8. The best comes first, heuristics included.",
        _format_main,
        figures.draw_main,
    ),
    "last_basket": Summary(
        "All items of a user's last basket, ranked once from the events before it. Metrics of a set: "
        "NDCG over the best order of the basket, recall, precision and MAP. Heuristics included.",
        partial(
            tables.tabulate_comparison,
            baselines=("last_basket/full", "last_basket/recent"),
            columns=("state, bytes", "HR@10", "RECALL@10", "PRECISION@10", "MAP@10", "NDCG@10"),
        ),
    ),
    "tuning": Summary(
        "NDCG@10 of the same small search for every family of methods, on validation targets; "
        "overwrite and append of a family share their setting. One seed; another seed moves a value by "
        "about .05, so a setting of main is replaced only by one that is better by more than .1.",
        tables.tabulate_search,
    ),
    "ablation": Summary(
        "One factor at a time from the recipe of `rec2pm_o`, with the budget of main.",
        partial(tables.tabulate_comparison, baselines=("ablation/recipe",)),
    ),
    "long": Summary(
        "The paper's plain recipe, full attention and recent events, with ten times the steps of main. "
        "Nothing of ours is added: no times, no own items, no exact memory, random kernels.",
        partial(tables.tabulate_comparison, baselines=("long/full", "long/recent")),
    ),
    "denoise": Summary(
        "The models of the main suite with a noisy archive. At evaluation a share of the events that "
        "memory holds for every target is replaced, for all methods, by items drawn uniformly (random) "
        "or by frequency (popular); `recent` reads some of them raw. NDCG@10, and its share of the "
        "clean value.",
        tables.tabulate_noise,
        figures.draw_denoise,
    ),
    "lifelong": Summary(
        "The models of the main suite, by length of the history.", _format_lifelong
    ),
    "anatomy": Summary(
        "What the slots hold. Attention: mean over heads and users, share of each query's (or the last "
        "raw event's) attention. Nearest items: by cosine with the difference of a slot from its mean "
        "over users.",
        tables.describe_anatomy,
        figures.draw_anatomy,
    ),
    "quantised": Summary(
        "Memories of the main suite's models, stored in fewer bytes between updates: rounded after "
        "every update, so that errors feed back. int8 has a float32 scale per slot. Differences "
        "(in points of NDCG@10) and ratios are to the float32 memory of the same weights; validation "
        "targets, the 10 events before, make intervals narrower.",
        memory_tables.tabulate_quantised,
    ),
    "since_archive": Summary(
        "NDCG@10 by the number of raw events that a read sees, S + R - 1 at most. Ratios are to "
        "`full` on the same targets. The models trained at several R are those of the ablation suite.",
        memory_tables.tabulate_since_archive,
    ),
    "genrec": Summary(
        "`full` in generative-recommenders' public ML-1M setting: no validation split, the best step "
        "on the test targets, the 200 events read left out of the ranking. Published, HR@10 and "
        "NDCG@10: SASRec 28.53 and 16.03, HSTU 30.97 and 17.20, HSTU-large 32.94 and 18.93.",
        tables.tabulate_comparison,
    ),
    "smoke": Summary(
        "A trial of the machinery; the numbers mean nothing.",
        partial(tables.tabulate_comparison, baselines=("full", "recent")),
    ),
}


def note_retrained(found: SuiteResults) -> list[str]:
    """Return a note that names the runs whose weights differ from those of suite main.

    If the directory of a run was lost, the run was trained again, and rounding on another machine
    differs.
    """
    main = found.path.with_name("main.json")
    if found.suite == "main" or not main.exists():
        return []
    trained = {record["run"]: _identify(record) for record in json.loads(main.read_text())}
    other = {
        record["run"].split("/", 1)[1]
        for record in found.records
        if record["config_hash"] is not None  # not a heuristic
        and trained.get(record["run"], _identify(record)) != _identify(record)
    }
    if not other:
        return []
    names = ", ".join(sorted(other))
    return [
        "",
        f"Trained again with main's configuration and seed, so the weights are not main's: {names}.",
    ]


def _identify(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells two trainings of one configuration apart."""
    return record.get("git_commit"), record.get("step"), record.get("train_wall_s")


def write(found: SuiteResults) -> None:
    """Write `RESULTS/SUITE.md`, and the figure, from the records that are there."""
    summary, all_rows = SUMMARIES[found.suite], collect_rows(found)
    if not all_rows:
        return
    lines = [f"# {found.suite}", "", summary.introduction, ""]
    lines.append(
        f"Command: `python -m launch.reproduce --suite={found.suite} --data=data "
        "--workdir=runs/reproduce`. Full-catalogue ranking, ties pessimistic; metrics in %. "
        "Intervals: 95 %, paired bootstrap over users of the mean over seeds."
    )
    lines += note_retrained(found)
    for (dataset, backbone), rows in all_rows.items():
        first = next(row for row in rows if row.trained).records[0]
        budget = first["budget"]
        lines += [
            "",
            f"## {DATASETS[dataset].title}, {backbone}",
            "",
            f"{first['split']} split, {first['protocol']}, {first['users']} users, "
            f"{first['targets']} targets, seen items {'' if first['seen_masked'] else 'not '}masked; "
            f"{budget['steps']} steps of {budget['batch_size']} windows.",
            "",
            *summary.format(rows),
        ]
    path = found.path.with_suffix(".md")
    with replaced_file(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    if summary.draw:
        summary.draw(all_rows, path.with_suffix(".png"))
