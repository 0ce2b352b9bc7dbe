"""The tables of docs/results.md, made from the records of `launch.reproduce` and `launch.compare`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch.experiments import ablation_tables, memory_tables, tables
from launch.experiments.results_file import SuiteResults
from launch.experiments.rows import (
    KNOWN_TIME,
    UNKNOWN_TIME,
    Row,
    by_label,
    choose_for_main,
    collect_rows,
)
from launch.experiments.run import DATASETS
from launch.experiments.suites import MAIN
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.report import display_name

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
            choose_for_main(rows("main", dataset, backbone)),
            ("full", "recent_exact"),
            columns=("state, bytes", "HR@10", "NDCG@10"),
            costs=("training, min",),
        )

    def compare_baskets(dataset: str) -> Table:
        return lambda: tables.tabulate_comparison(
            choose_for_main(rows("last_basket", dataset)),
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
        "overview": lambda: tabulate_overview({name: rows("main", name) for name in OVERVIEW}),
        "demo": lambda: tabulate_records(records("demo"), serving=True),
        **{f"main-{name}": compare(name) for name in datasets},
        "main-hstu": compare(TYPES, "hstu"),
        "main-long": lambda: tabulate_long(rows("main")),
        "parts": lambda: tabulate_swapped(rows("main")),
        "request-time": lambda: tabulate_request_time(rows("main")),
        **{f"basket-{name}": compare_baskets(name) for name in datasets},
        "ablation-recipe": lambda: ablation_tables.tabulate_variants(
            rows("ablation"), ablation_tables.RECIPE
        ),
        "ablation-sizes": lambda: ablation_tables.tabulate_variants(
            rows("ablation"), ablation_tables.SIZES
        ),
        "ablation-consistency": lambda: ablation_tables.tabulate_consistency(rows("ablation")),
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


# Dataset -> its column in README's table; label of a row there -> its variant.
OVERVIEW = {
    TYPES: "groceries",
    "complete_journey_products": "products",
    "online_retail": "online retail",
    "ml1m_200": "films",
}
OVERVIEW_ROWS = {
    "Rec2PM": "rec2pm_o",
    "the same memory by back-propagation through time (`tok_serial_o`)": "tok_serial_o",
    "linear recurrence (LRU)": "linear_recurrence",
    "recent events and the exact memory": "recent_exact",
    "full attention, last 400 events": "full",
    "attention, last 16 events": "recent",
    "counts and transitions, whole history": "counts_and_transitions",
}


def tabulate_overview(datasets: dict[str, list[Row]]) -> list[str]:
    """Return NDCG@10 of methods on several datasets, the best of each in bold, and bytes of state.

    Args:
      datasets: key of `OVERVIEW` -> rows of suite main.
    """
    columns = {name: by_label(choose_for_main(rows)) for name, rows in datasets.items()}
    shown = {
        name: [found.get(v) or found[v + KNOWN_TIME] for v in OVERVIEW_ROWS.values()]
        for name, found in columns.items()
    }
    best = {name: max(row.mean() for row in rows) for name, rows in shown.items()}
    body = []
    for number, label in enumerate(OVERVIEW_ROWS):
        cells = [label]
        for name, rows in shown.items():
            text = f"{100 * rows[number].mean():.2f}"
            cells.append(f"**{text}**" if rows[number].mean() == best[name] else text)
        cells.append(tables.format_cell("state, bytes", rows[number]))
        body.append(cells)
    return tables.format_markdown(["method", *OVERVIEW.values(), "state, bytes"], body)


def tabulate_long(rows: Sequence[Row]) -> list[str]:
    """Return the table of users with long histories, of models whose memory is rolled forward."""
    chosen = [r for r in choose_for_main(rows) if not r.label.endswith("(one-time)") and r.trained]
    return tables.tabulate_comparison(chosen, ("full", "recent_exact"), long=True)


def tabulate_request_time(rows: Sequence[Row]) -> list[str]:
    """Return NDCG@10 of models where the time of the request is known, and where it is not."""
    found, body = by_label(rows), []
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
