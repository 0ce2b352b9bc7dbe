"""The tables of docs/results.md, made from the records of `launch.reproduce` and `launch.compare`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.experiments import memory_tables, tables
from launch.experiments.results_file import SuiteResults
from launch.experiments.rows import Row, collect_rows
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.report import display_name

Table = Callable[[], list[str]]  # -> lines of markdown

TYPES, PRODUCTS = "complete_journey_types", "complete_journey_products"
# generative-recommenders' README: HR@10, NDCG@10 and HR@50 of its public ML-1M setting, in %.
PUBLISHED = {"sasrec": (28.53, 16.03, 54.74), "hstu": (30.97, 17.20, 57.54)}
_METHOD_COLUMNS = ("HR@10", "NDCG@10")
_COST_COLUMNS = ("state, bytes", "training, min")


def list_tables(folder: Path) -> dict[str, Table]:
    """Return the tables of the page by name.

    Args:
      folder: directory of the records, such as results/v0.1.
    """

    @functools.cache
    def rows(suite: str, dataset: str = TYPES, backbone: str = "sasrec") -> list[Row]:
        found = collect_rows(SuiteResults(folder, suite)).get((dataset, backbone))
        if not found:
            raise UserError(f"{folder / suite}.json has no records of {dataset} with {backbone}.")
        return found

    def records(name: str) -> list[dict[str, Any]]:
        return json.loads((folder / f"{name}.json").read_text())

    def compare(suite: str, dataset: str, columns: Sequence[str], costs: Sequence[str]) -> Table:
        return lambda: tables.tabulate_comparison(
            rows(suite, dataset), ("full", "recent"), columns=columns, costs=costs
        )

    return {
        "demo": lambda: tabulate_records(records("demo"), serving=True),
        "main-types": compare("main", TYPES, _METHOD_COLUMNS, _COST_COLUMNS),
        "main-types-long": lambda: tabulate_long(rows("main")),
        "main-ml1m": compare("main", "ml1m_200", _METHOD_COLUMNS, ("state, bytes",)),
        "main-products": compare("main", PRODUCTS, _METHOD_COLUMNS, ()),
        "main-hstu": lambda: tabulate_two_datasets(
            rows("main", TYPES, "hstu"), rows("main", "ml1m_200", "hstu")
        ),
        "ablation-recipe": lambda: tabulate_variants(rows("ablation"), RECIPE_VARIANTS),
        "ablation-sizes": lambda: tabulate_variants(rows("ablation"), SIZE_VARIANTS),
        "ablation-consistency": lambda: tabulate_consistency(rows("ablation")),
        "swapped": lambda: tabulate_swapped(rows("main")),
        "lifelong": lambda: tables.tabulate_lengths(rows("lifelong")),
        "drift": lambda: tables.tabulate_drift(rows("lifelong")),
        "denoise": lambda: tables.tabulate_noise(rows("denoise")),
        "quantised": lambda: memory_tables.tabulate_kept(rows("quantised")),
        "tuning": lambda: tables.tabulate_search(rows("tuning")),
        "synthetic": lambda: tabulate_records(records("synthetic"), swapped=True),
        "ml1m": lambda: tabulate_records(records("ml1m")),
        "genrec": lambda: tabulate_published(
            {backbone: rows("genrec", "ml1m", backbone)[0] for backbone in PUBLISHED}
        ),
    }


# What the page calls a variant -> its name in the suite.
RECIPE_VARIANTS = {
    "default recipe": "recipe",
    "without slots of different horizons": "without horizons",
    "without recall": "without recall",
    "without the running mean": "without running mean",
    "without identity initialisation": "without copying start",
    "paper's plain recipe": "plain recipe",
    "with a next-item loss of the reference pass": "with reference AR loss",
    "with bag loss": "with bag loss",
    "target of L_con stopped": "L_con target stopped",
}
SIZE_VARIANTS = {
    "default: C = 4, S = 25, R = 1, window 1, overwrite": "recipe",
    **{f"C = {c} slots": f"C = {c}" for c in (1, 2, 8, 16)},
    "segments of S = 10 events": "S = 10",
    "segments of S = 50 events": "S = 50",
    "R = 13 events stay raw": "R = 13",
    "R = 25 events stay raw": "R = 25",
    "reference pass sees 2 segments": "reference window of 2",
    "reference pass sees 4 segments": "reference window of 4",
    "reference pass sees the whole window": "reference pass without window",
    "memories append": "append",
}
# (what readers read in training, what targets read) -> variant by lambda.
_CONSISTENCY = {
    "live memory in half of the cases": {
        "3": "lambda = 3",
        "1": "recipe",
        "0.3": "lambda = 0.3",
        "0.1": "lambda = 0.1",
        "0": "without L_con",
    },
    "reference memory only, as in the paper": {
        "1": "without live memories",
        "0": "without live memories or L_con",
    },
}


def tabulate_variants(rows: Sequence[Row], variants: dict[str, str]) -> list[str]:
    """Return NDCG@10 of variants, rolled forward and in one pass, and the ratio to the recipe.

    Args:
      rows: of suite ablation.
      variants: label -> name of the variant.
    """
    found, body = _by_label(rows), []
    base = found["recipe"]
    for label, name in variants.items():
        one_time = found.get(f"{name} (one-time)")
        in_one_pass = f"{100 * one_time.mean():.2f}" if one_time else "-"
        ratio = tables.format_ratio(found[name], base)
        body.append([label, f"{100 * found[name].mean():.2f}", ratio, in_one_pass])
    return tables.format_markdown(["variant", "NDCG@10", "/ default", "memory in one pass"], body)


def tabulate_consistency(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 by the weight of L_con, the memory that readers train on, and that they read."""
    found, body = _by_label(rows), []
    weights = list(_CONSISTENCY["live memory in half of the cases"])
    for trained_on, variants in _CONSISTENCY.items():
        for memory, suffix in (("rolled forward", ""), ("in one pass", " (one-time)")):
            values = {w: found[f"{name}{suffix}"].mean() for w, name in variants.items()}
            cells = [f"{100 * values[w]:.2f}" if w in values else "-" for w in weights]
            body.append([f"{trained_on}; evaluated {memory}", *cells])
    return tables.format_markdown(["trained on", *(f"lambda {w}" for w in weights)], body)


def tabulate_long(rows: Sequence[Row]) -> list[str]:
    """Return the table of users with long histories, without one-time and appended memories."""
    chosen = [r for r in rows if not r.label.endswith(("(one-time)", "_a")) and r.trained]
    return tables.tabulate_comparison(chosen, ("full", "recent"), long=True)


def tabulate_two_datasets(types: Sequence[Row], films: Sequence[Row]) -> list[str]:
    """Return NDCG@10 and the ratio to `full` on two datasets side by side."""
    others, body = {row.variant: row for row in films}, []
    bases = [next(r for r in table if r.variant == "full") for table in (types, films)]
    for row in types:
        if row.trained and not row.label.endswith("(one-time)"):
            cells = [row.label]
            for value, base in zip((row, others[row.variant]), bases, strict=True):
                cells += [f"{100 * value.mean():.2f}", tables.format_ratio(value, base)]
            body.append(cells)
    header = ["method", "Complete Journey", "/ full", "MovieLens 1M", "/ full"]
    return tables.format_markdown(header, body)


def tabulate_swapped(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 with the user's own state, with another user's, and with one part of another's."""
    shown = [row for row in rows if row.records[0]["swap"]]
    parts = {"state": "ndcg@10", "preference memory": "memory", "exact memory": "exact"}
    parts = {
        name: part
        for name, part in parts.items()
        if any(part in r.records[0]["swap"] for r in shown)
    }
    body = [
        [
            row.label,
            f"{100 * row.mean():.2f}",
            *(tables.format_swap(row, p) for p in parts.values()),
        ]
        for row in shown
    ]
    header = ["method", "own state", *(f"another user's {name}" for name in parts)]
    return tables.format_markdown(header, body)


def tabulate_records(
    records: Sequence[dict[str, Any]], serving: bool = False, swapped: bool = False
) -> list[str]:
    """Return metrics of `launch.compare`, best first.

    Args:
      records: of one dataset.
      serving: show what an update and a read take, too.
      swapped: show NDCG@10 with another user's memory, too.
    """
    header = ["method", "HR@10", "NDCG@10 (95 %)"]
    header += ["state, bytes", "update, ms", "read, ms"] if serving else []
    header += ["with another user's memory"] if swapped else []
    body = []
    for record in sorted(records, key=lambda r: r["metrics"]["ndcg@10"], reverse=True):
        metrics, (low, high) = record["metrics"], record["intervals"]["ndcg@10"]
        cells = [display_name(record), f"{100 * metrics['hr@10']:.2f}"]
        cells.append(f"{100 * metrics['ndcg@10']:.2f} ({100 * low:.2f}..{100 * high:.2f})")
        if serving:
            times = [record.get(name) for name in ("update_ms", "read_ms")]
            cells.append(f"{record['state_bytes_per_user'] or 0:,}" if times[1] else "-")
            cells += ["-" if time is None else f"{time:.2f}" for time in times]
        if swapped:
            swap = record["swap"]
            cells.append(f"{100 * swap['ndcg@10']:.2f}" if swap else "-")
        body.append(cells)
    return tables.format_markdown(header, body)


def tabulate_published(rows: dict[str, Row]) -> list[str]:
    """Return metrics beside the published ones; rows: by backbone."""
    metrics = ("hr@10", "ndcg@10", "hr@50")
    header = ["backbone"]
    for name in metrics:
        header += [name.upper(), f"published {name.upper()}"]
    body = []
    for backbone, row in rows.items():
        cells = [backbone]
        for name, published in zip(metrics, PUBLISHED[backbone], strict=True):
            cells += [f"{100 * row.mean(name):.2f}", f"{published:.2f}"]
        body.append(cells)
    return tables.format_markdown(header, body)


def _by_label(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.label: row for row in rows}
