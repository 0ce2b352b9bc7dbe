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
from launch.experiments.run import DATASETS
from launch.experiments.suites import MAIN
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.report import display_name

KNOWN_TIME, UNKNOWN_TIME = ", request time known", ", request time unknown"
_WINDOWED = "personal_frequency (window"  # counts of few events: for SUITE.md only
Table = Callable[[], list[str]]  # -> lines of markdown

TYPES = "complete_journey_types"
# generative-recommenders' README: HR@10, NDCG@10 and HR@50 of its public ML-1M setting, in %.
PUBLISHED = {"sasrec": (28.53, 16.03, 54.74), "hstu": (30.97, 17.20, 57.54)}


def list_tables(folder: Path) -> dict[str, Table]:
    """Return the tables of the page by name.

    Args:
      folder: directory of the records.
    """

    @functools.cache
    def rows(suite: str, dataset: str = TYPES, backbone: str = "sasrec") -> list[Row]:
        found = collect_rows(SuiteResults(folder, suite)).get((dataset, backbone))
        if not found:
            raise UserError(f"{folder / suite}.json has no records of {dataset} with {backbone}.")
        return found

    def records(name: str) -> list[dict[str, Any]]:
        return json.loads((folder / f"{name}.json").read_text())

    def compare(dataset: str, backbone: str = "sasrec") -> Table:
        return lambda: tables.tabulate_comparison(
            _choose_for_main(rows("main", dataset, backbone)),
            ("full", "recent_exact"),
            columns=("state, bytes", "HR@10", "NDCG@10"),
            costs=("training, min",),
        )

    def compare_baskets(dataset: str) -> Table:
        return lambda: tables.tabulate_comparison(
            _choose_for_main(rows("last_basket", dataset)),
            ("last_basket/full", "last_basket/recent"),
            columns=("HR@10", "RECALL@10", "MAP@10", "NDCG@10"),
            costs=(),
        )

    def compare_long(backbone: str) -> Table:
        return lambda: tables.tabulate_comparison(
            rows("long", TYPES, backbone),
            ("long/full", "long/recent"),
            columns=("HR@10", "NDCG@10"),
            costs=("memory swapped",),
        )

    datasets = [name for name, spec in DATASETS.items() if name in MAIN]
    return {
        "demo": lambda: tabulate_records(records("demo"), serving=True),
        **{f"main-{name}": compare(name) for name in datasets},
        "main-hstu": compare(TYPES, "hstu"),
        "main-long": lambda: tabulate_long(rows("main")),
        "parts": lambda: tabulate_swapped(rows("main")),
        "request-time": lambda: tabulate_request_time(rows("main")),
        **{f"basket-{name}": compare_baskets(name) for name in datasets},
        "ablation-recipe": lambda: tabulate_variants(rows("ablation"), RECIPE_VARIANTS),
        "ablation-sizes": lambda: tabulate_variants(rows("ablation"), SIZE_VARIANTS),
        "ablation-consistency": lambda: tabulate_consistency(rows("ablation")),
        **{f"long-{backbone}": compare_long(backbone) for backbone in PUBLISHED},
        "lifelong": lambda: tables.tabulate_lengths(rows("lifelong")),
        "lifelong-coop100": lambda: tables.tabulate_lengths(rows("lifelong", "coop100")),
        "drift": lambda: tables.tabulate_drift(rows("lifelong")),
        "drift-coop100": lambda: tables.tabulate_drift(rows("lifelong", "coop100")),
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
    "without live memories": "without live memories",
    "live memories only": "live memories only",
    "without identity initialisation": "without identity initialisation",
    "without the running mean": "plain memory",
    "paper's plain recipe, with times and own items": "plain recipe",
    "without times": "without times",
    "without exact memory": "without exact memory",
    "without exact memory and repeat head": "without own items",
}
SIZE_VARIANTS = {
    "default: C = 4, E = 94, S = 16, R = 1, window 1, overwrite": "recipe",
    **{f"C = {c} slots": f"C = {c}" for c in (1, 2, 8, 16)},
    **{f"exact memory of E = {e} items": f"E = {e}" for e in (32, 64, 128)},
    **{f"segments of S = {s} events": f"S = {s}" for s in (10, 25, 50)},
    **{f"R = {r} events stay raw": f"R = {r}" for r in (8, 16)},
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
    """Return the table of users with long histories, of models whose memory is rolled forward."""
    chosen = [r for r in _choose_for_main(rows) if not r.label.endswith("(one-time)") and r.trained]
    return tables.tabulate_comparison(chosen, ("full", "recent_exact"), long=True)


def tabulate_request_time(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 of models where the time of the request is known, and where it is not."""
    found, body = _by_label(rows), []
    for label, row in found.items():
        unknown = found.get(f"{label}{UNKNOWN_TIME}")
        if unknown:
            ratio = tables.format_ratio(unknown, row)
            body.append([label, f"{100 * row.mean():.2f}", f"{100 * unknown.mean():.2f}", ratio])
    return tables.format_markdown(["method", "known", "unknown", "unknown / known"], body)


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


def _choose_for_main(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of a table that compares methods where the time of the request is known.

    Of each heuristic the better of the forms with and without the rule "nothing twice in one basket"
    stays. Data without times have all their rows.
    """
    models = [row for row in rows if row.trained and not row.label.endswith(UNKNOWN_TIME)]
    best: dict[str, Row] = {}
    for row in rows:  # best first
        if not row.trained and not row.label.startswith(_WINDOWED):
            best.setdefault(row.label.removesuffix(KNOWN_TIME), row)
    return models + list(best.values())


def _by_label(rows: Sequence[Row]) -> dict[str, Row]:
    return {row.label: row for row in rows}
