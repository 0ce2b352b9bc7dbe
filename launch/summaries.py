"""The tables and figures of `launch.reproduce`, made from records and per-user values alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from launch import main_figure
from launch.suites import DATASETS
from rec2pm_jax.evaluate.bootstrap import paired_bootstrap

LONG = 500  # events from which a history counts as long

INTRODUCTIONS = {
    "main": "All methods with the same backbone, data, budget and optimiser; settings as tuned in "
    "[tuning.md](tuning.md).",
    "tuning": "The same small search for every family of methods, on validation targets; overwrite "
    "and append of a family share their setting. Best of each family in bold.",
    "genrec": "`full` in generative-recommenders' public ML-1M setting: no validation split, the best "
    "step on the test targets, the 200 events read left out of the ranking. Published, HR@10 and "
    "NDCG@10: SASRec 28.53 and 16.03, HSTU 30.97 and 17.20, HSTU-large 32.94 and 18.93.",
    "smoke": "A trial of the machinery; the numbers mean nothing.",
    "ablation": "One factor at a time from the recipe of `rec2pm_o`, at two thirds of the steps.",
}
# What the rows of a suite are paired with.
BASELINES = {
    "main": ("full", "recent"),
    "tuning": (),
    "ablation": ("ablation/recipe",),
    "genrec": (),
    "smoke": ("full", "recent"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: the runs of one variant, over seeds.

    Attributes:
      records: one per seed.
      ndcg: float [seeds, users], NDCG@10 of every user.
      lengths: int [users], events before the last target.
    """

    variant: str
    records: Sequence[dict[str, Any]]
    ndcg: np.ndarray
    lengths: np.ndarray

    @property
    def label(self) -> str:
        return self.variant.rsplit("ablation/", 1)[-1]

    def mean(self, metric: str = "ndcg@10") -> float:
        return float(np.mean([record["metrics"][metric] for record in self.records]))

    def values(self, long: bool) -> np.ndarray:
        """Mean over seeds of each user's NDCG@10, of all users or of those with long histories."""
        users = self.lengths >= LONG if long else np.ones_like(self.lengths, bool)
        return self.ndcg.mean(axis=0)[users]


def collect(found) -> dict[tuple[str, str], list[Row]]:
    """Rows by (dataset, backbone), best first; heuristics belong to every backbone of a dataset."""
    groups: dict[tuple[str, str | None, str], list] = {}
    for record in found.records:
        dataset = record["run"].split("/", 1)[0]
        with np.load(found.users_of(record["run"])) as arrays:
            same_run = [r for r in found.records if r["run"] == record["run"]]
            ndcg, lengths = arrays["ndcg"][same_run.index(record)], arrays["lengths"]
        key = (dataset, record["backbone"], record["variant"])
        groups.setdefault(key, []).append((record, ndcg, lengths))
    rows = {
        key: Row(key[2], [r for r, _, _ in found], np.stack([n for _, n, _ in found]), found[0][2])
        for key, found in groups.items()
    }
    tables: dict[tuple[str, str], list[Row]] = {}
    for (dataset, backbone, _variant), row in rows.items():
        if backbone is not None:
            tables.setdefault((dataset, backbone), []).append(row)
    for (dataset, _backbone), table in tables.items():
        table += [row for key, row in rows.items() if key[0] == dataset and key[1] is None]
        table.sort(key=Row.mean, reverse=True)
    return tables


def write(suite: str, found) -> None:
    """Writes `RESULTS/SUITE.md` and `RESULTS/SUITE.png` for the records that are there."""
    tables = collect(found)
    if not tables:
        return
    lines = [f"# {suite}", "", INTRODUCTIONS[suite], ""]
    lines.append(
        f"Command: `python -m launch.reproduce --suite={suite} --data=data "
        "--workdir=runs/reproduce`. Full-catalogue ranking, ties pessimistic; metrics in %. "
        "Intervals: 95 %, paired bootstrap over users of the mean over seeds."
    )
    for (dataset, backbone), rows in tables.items():
        first = next(row for row in rows if row.records[0]["config_hash"]).records[0]
        budget = first["budget"]
        lines += [
            "",
            f"## {DATASETS[dataset].title}, {backbone}",
            "",
            f"{first['split']} split, {first['protocol']}, {first['users']} users, "
            f"{first['targets']} targets, seen items {'' if first['seen_masked'] else 'not '}masked; "
            f"{budget['steps']} steps of {budget['batch_size']} windows.",
            "",
        ]
        if suite == "tuning":
            lines += _tuning_table(rows)
            continue
        lines += _table(rows, BASELINES[suite], long=False)
        if suite == "main" and (rows[0].lengths >= LONG).any():
            count = int((rows[0].lengths >= LONG).sum())
            lines += ["", f"Users with at least {LONG} events ({count}):", ""]
            lines += _table(rows, BASELINES[suite], long=True)
    path = found.path.with_suffix(".md")
    temporary = path.with_name(f".{path.name}")
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, path)
    if suite == "main":
        main_figure.draw(tables, path.with_suffix(".png"))


def _table(rows: Sequence[Row], baselines: Sequence[str], long: bool) -> list[str]:
    """Markdown of one table, best NDCG@10 first; long: only users with long histories."""
    by_name = {row.variant: row for row in rows}
    paired = [by_name[name] for name in baselines if name in by_name]
    columns: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.label)]
    if not long:
        columns += [
            ("seeds", lambda row: str(len(row.records)) if row.records[0]["config_hash"] else "-"),
            ("state, bytes", _state),
            ("HR@10", lambda row: f"{100 * row.mean('hr@10'):.2f}"),
            ("HR@50", lambda row: f"{100 * row.mean('hr@50'):.2f}"),
            ("MRR", lambda row: f"{100 * row.mean('mrr'):.2f}"),
        ]
    columns.append(("NDCG@10", lambda row: _ndcg(row, long)))
    columns += [
        (f"/ {base.label}", lambda row, base=base: _ratio(row, base, long)) for base in paired
    ]
    if not long:
        columns += [("memory swapped", _swapped), ("training, min", _minutes)]
    rows = sorted(rows, key=lambda row: row.values(long).mean(), reverse=True)
    lines = [_line([name for name, _ in columns]), _line(["---"] + ["---:"] * (len(columns) - 1))]
    for i, row in enumerate(rows):
        cells = [cell(row) for _, cell in columns]
        if i == 0:
            cells = [f"**{cell}**" for cell in cells]
        lines.append(_line(cells))
    return lines


def _tuning_table(rows: Sequence[Row]) -> list[str]:
    """Families down, settings across."""
    cells = {tuple(row.variant.split("/")[1:]): row.mean() for row in rows}
    settings = sorted({setting for _, setting in cells})
    lines = [_line(["method", *settings]), _line(["---"] + ["---:"] * len(settings))]
    for method in dict.fromkeys(method for method, _ in cells):
        values = [cells.get((method, setting)) for setting in settings]
        best = max(value for value in values if value is not None)
        shown = ["-" if value is None else f"{100 * value:.2f}" for value in values]
        marked = [
            f"**{text}**" if value == best else text
            for text, value in zip(shown, values, strict=True)
        ]
        lines.append(_line([method, *marked]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _state(row: Row) -> str:
    bytes_ = row.records[0]["state_bytes_per_user"]
    return f"{bytes_:,}" if bytes_ else "-"


def _ndcg(row: Row, long: bool) -> str:
    """Mean over users and seeds; with several seeds their standard deviation."""
    values = 100 * row.values(long)
    if len(row.records) > 1:
        users = row.lengths >= LONG if long else slice(None)
        spread = 100 * row.ndcg[:, users].mean(axis=1).std(ddof=1)
        return f"{values.mean():.2f} ± {spread:.2f}"
    return f"{values.mean():.2f}"


def _ratio(row: Row, base: Row, long: bool) -> str:
    if row is base:
        return "1"
    ratio = paired_bootstrap(row.values(long), base.values(long)).ratio
    return f"{ratio.estimate:.3f} ({ratio.low:.3f}..{ratio.high:.3f})"


def _swapped(row: Row) -> str:
    swaps = [record["swap"]["ndcg@10"] for record in row.records if record["swap"]]
    return f"{100 * np.mean(swaps):.2f}" if swaps else "-"


def _minutes(row: Row) -> str:
    seconds = [r["train_wall_s"] for r in row.records if r.get("train_wall_s")]
    return f"{np.mean(seconds) / 60:.0f}" if seconds else "-"
