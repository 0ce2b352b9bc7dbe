"""Rows and markdown tables, made from records and per-user values alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from rec2pm_jax.evaluate.bootstrap import paired_bootstrap

LONG = 500  # events from which a history counts as long
BINS = ((0, 200), (200, 500), (500, 1000), (1000, 1 << 30))  # events before the last target


class TargetValues(NamedTuple):
    """Attributes: NDCG@10 of every target, float [targets], mean over seeds; its user and how many
    events came before it, int [targets]."""

    ndcg: np.ndarray
    user: np.ndarray
    position: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: the runs of one variant, over seeds.

    Attributes:
      records: one per seed.
      ndcg: float [seeds, users], NDCG@10 of every user.
      lengths: int [users], events before the last target.
      targets: of an analysis that keeps them, else None.
    """

    variant: str
    records: Sequence[dict[str, Any]]
    ndcg: np.ndarray
    lengths: np.ndarray
    targets: TargetValues | None = None

    @property
    def label(self) -> str:
        return self.variant.rsplit("ablation/", 1)[-1]

    @property
    def trained(self) -> bool:
        """Not a heuristic."""
        return self.records[0]["config_hash"] is not None

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
            number = same_run.index(record)
            ndcg, lengths, targets = arrays["ndcg"][number], arrays["lengths"], None
            if "target_ndcg" in arrays:
                of_user = (arrays["target_user"], arrays["target_position"])
                targets = TargetValues(arrays["target_ndcg"][number], *of_user)
        key = (dataset, record["backbone"], record["variant"])
        groups.setdefault(key, []).append((record, ndcg, lengths, targets))
    rows = {key: _row(key[2], *zip(*seeds, strict=True)) for key, seeds in groups.items()}
    tables: dict[tuple[str, str], list[Row]] = {}
    for (dataset, backbone, _variant), row in rows.items():
        if backbone is not None:
            tables.setdefault((dataset, backbone), []).append(row)
    for (dataset, _backbone), table in tables.items():
        table += [row for key, row in rows.items() if key[0] == dataset and key[1] is None]
        table.sort(key=Row.mean, reverse=True)
    return tables


def _row(variant: str, records, ndcg, lengths, targets) -> Row:
    """A row of what each seed left."""
    first = targets[0]
    if first is not None:
        first = first._replace(ndcg=np.mean([seed.ndcg for seed in targets], axis=0))
    return Row(variant, records, np.stack(ndcg), lengths[0], first)


def comparison(rows: Sequence[Row], baselines: Sequence[str] = (), long: bool = False) -> list[str]:
    """All metrics and pairings with some rows, best first; long: only users with long histories."""
    by_name = {row.variant: row for row in rows}
    paired = [by_name[name] for name in baselines if name in by_name]
    columns: list[tuple[str, Callable[[Row], str]]] = [("method", lambda row: row.label)]
    if not long:
        columns += [
            ("seeds", lambda row: str(len(row.records)) if row.trained else "-"),
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
    body = [[cell(row) for _, cell in columns] for row in rows]
    body[0] = [f"**{cell}**" for cell in body[0]]
    return markdown([name for name, _ in columns], body)


def search(rows: Sequence[Row]) -> list[str]:
    """Families down, settings across, the best of each family in bold."""
    cells = {tuple(row.variant.split("/")[1:]): row.mean() for row in rows}
    settings = sorted({setting for _, setting in cells})
    body = []
    for method in dict.fromkeys(method for method, _ in cells):
        values = {s: cells[method, s] for s in settings if (method, s) in cells}
        best = max(values, key=values.get)
        shown = {
            s: f"**{100 * v:.2f}**" if s == best else f"{100 * v:.2f}" for s, v in values.items()
        }
        body.append([method, *(shown.get(setting, "-") for setting in settings)])
    return markdown(["method", *settings], body)


def noise(rows: Sequence[Row]) -> list[str]:
    """Methods down, kinds and shares of noise across: NDCG@10 and what is left of the clean one."""
    body, header = [], ["method", "clean"]
    for method, levels in noise_levels(rows).items():
        (_, clean), *noisy = levels.items()
        header = ["method", "clean", *(f"{kind} {share:.0%}" for (kind, share), _ in noisy)]
        cells = (f"{100 * row.mean():.2f} ({row.mean() / clean.mean():.3f})" for _, row in noisy)
        body.append([method, f"{100 * clean.mean():.2f}", *cells])
    return markdown(header, body)


def noise_levels(rows: Sequence[Row]) -> dict[str, dict[tuple[str, float], Row]]:
    """method -> (kind, share) -> row, the clean one first."""
    found: dict[str, dict[tuple[str, float], Row]] = {}
    for row in rows:
        level = row.records[0]["noise"]
        key = (level["kind"], level["fraction"])
        found.setdefault(row.variant.split("/")[0], {})[key] = row
    return {
        method: {level: levels[level] for level in sorted(levels, key=lambda x: (x[1] > 0, x))}
        for method, levels in found.items()
    }


def by_length(rows: Sequence[Row]) -> list[str]:
    """NDCG@10 of users by length of the history."""
    lengths = rows[0].lengths
    groups = [(lengths >= low) & (lengths < high) for low, high in BINS]
    names = [f"{low}-{high}" if high < 1 << 30 else f">= {low}" for low, high in BINS]
    header = [f"{name} ({group.sum()} users)" for name, group in zip(names, groups, strict=True)]
    body = []
    for row in rows:
        values = row.ndcg.mean(axis=0)
        cells = (f"{100 * values[group].mean():.2f}" if group.any() else "-" for group in groups)
        body.append([row.label, *cells])
    return markdown(["method", *header], body)


def drift(rows: Sequence[Row]) -> list[str]:
    """Methods down, number of updates across; nothing where no method has a one-time memory."""
    found = {row.label: row.records[0]["drift"] for row in rows if row.records[0].get("drift")}
    updates = sorted({step["updates"] for steps in found.values() for step in steps})
    body = []
    for label, steps in found.items():
        cells = {
            step["updates"]: f"{step['relative']:.3f} ({step['users']})"
            for step in steps
            if step["relative"] is not None  # one user has no variance
        }
        body.append([label, *(cells.get(count, "-") for count in updates)])
    return markdown(["method", *map(str, updates)], body) if body else []


def anatomy(rows: Sequence[Row]) -> list[str]:
    """Attention on the memory, agreement of neighbours, and portraits of some users, per method."""
    lines = []
    for row in rows:
        found = row.records[0]["anatomy"]
        lines += [f"### {row.label}", ""]
        body = []
        for layer, (queries, reader) in enumerate(
            zip(found["attention"]["update"], found["attention"]["read"], strict=True), 1
        ):
            shares = (f"{100 * share[0]:.1f}" for share in (*queries, reader))
            body.append([str(layer), *shares])
        slots = len(found["attention"]["update"][0])
        names = [f"query {slot}" for slot in range(slots)]
        lines += ["Attention on the memory, %:", ""]
        lines += markdown(["layer", *names, "last raw event"], body)
        near = found["neighbours"]
        lines += [
            "",
            f"Of the ten nearest users by memory {100 * near['same']:.1f} % share a user's dominant "
            f"category; of random users {100 * near['chance']:.1f} %.",
        ]
        for user in found["users"]:
            lines += ["", f"A user with {user['archived_events']} archived events, most often "]
            lines[-1] += f"{', '.join(user['bought_most'])}:"
            body = [[str(slot), ", ".join(items)] for slot, items in enumerate(user["slots"])]
            lines += ["", *markdown(["slot", "nearest items"], body)]
        lines.append("")
    return lines


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first column is text and whose others are numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]


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
