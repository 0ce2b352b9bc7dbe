"""Rows of tables: the runs of one variant over seeds, from records and per-user values alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.experiments.results_file import SuiteResults

KNOWN_TIME, UNKNOWN_TIME = ", request time known", ", request time unknown"
_WINDOWED = "personal_frequency (window"  # counts of few events: for SUITE.md only
LONG = 500  # events from which a history counts as long


@dataclasses.dataclass(frozen=True)
class TargetValues:
    """NDCG@10 of every target.

    Attributes:
      ndcg: float [targets], mean over seeds.
      user: int [targets].
      position: int [targets], events of the user before the target.
    """

    ndcg: np.ndarray
    user: np.ndarray
    position: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a table: the runs of one variant, over seeds.

    Attributes:
      variant: as records name it.
      records: one per seed.
      ndcg: float [seeds, users], NDCG@10 of every user.
      lengths: int [users], events before the last target.
      targets: values of every target, if the analysis keeps them.
    """

    variant: str
    records: Sequence[dict[str, Any]]
    ndcg: np.ndarray
    lengths: np.ndarray
    targets: TargetValues | None = None

    @property
    def label(self) -> str:
        """The variant as tables show it."""
        group, _, rest = self.variant.partition("/")
        return rest if group in ("ablation", "last_basket", "long") else self.variant

    @property
    def trained(self) -> bool:
        """Whether this is a model, not a heuristic."""
        return self.records[0]["config_hash"] is not None

    def mean(self, metric: str = "ndcg@10") -> float:
        """Return the mean of a metric over seeds."""
        return float(np.mean([record["metrics"][metric] for record in self.records]))

    def user_values(self, long: bool = False) -> np.ndarray:
        """Return each user's NDCG@10, mean over seeds; `long`: only of users with long histories."""
        return self.ndcg.mean(axis=0)[self.select_users(long)]

    def select_users(self, long: bool) -> np.ndarray:
        """Return which users count, bool [users]."""
        return self.lengths >= LONG if long else np.ones_like(self.lengths, bool)


Tables = dict[tuple[str, str], list[Row]]  # (dataset, backbone) -> rows, best first


def collect_rows(found: SuiteResults) -> Tables:
    """Return the rows of each dataset and backbone, best first.

    Heuristics belong to every backbone of a dataset. Linear recurrences have a backbone that replaces
    the one of their run; they stand beside the other methods of that run.
    """
    groups: dict[tuple[str, str | None, str], list[Row]] = {}
    for record in found.records:
        dataset, backbone, _ = record["run"].split("/", 2)
        key = (dataset, backbone if record["backbone"] else None, record["variant"])
        groups.setdefault(key, []).append(_load_row(found, record))
    rows = {key: _merge_seeds(seeds) for key, seeds in groups.items()}
    tables: Tables = {}
    for (dataset, backbone, _variant), row in rows.items():
        if backbone is not None:
            tables.setdefault((dataset, backbone), []).append(row)
    for (dataset, _backbone), table in tables.items():
        table += [row for key, row in rows.items() if key[0] == dataset and key[1] is None]
        table.sort(key=Row.mean, reverse=True)
    return tables


def by_label(rows: Sequence[Row]) -> dict[str, Row]:
    """Return rows of one dataset and backbone by what tables call them."""
    return {row.label: row for row in rows}


def choose_for_main(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that compare methods where the time of the request is known, best first.

    Of each heuristic the better of the forms with and without the rule "nothing twice in one basket"
    stays. Data without times have all their rows.
    """
    models = [row for row in rows if row.trained and not row.label.endswith(UNKNOWN_TIME)]
    best: dict[str, Row] = {}
    for row in rows:  # best first
        if not row.trained and not row.label.startswith(_WINDOWED):
            best.setdefault(row.label.removesuffix(KNOWN_TIME), row)
    return sorted([*models, *best.values()], key=Row.mean, reverse=True)


def _load_row(found: SuiteResults, record: dict[str, Any]) -> Row:
    """Return the row of one record, with one seed."""
    number = [r for r in found.records if r["run"] == record["run"]].index(record)
    with np.load(found.users_path(record["run"])) as arrays:
        targets = None
        if "target_ndcg" in arrays:
            targets = TargetValues(
                arrays["target_ndcg"][number], arrays["target_user"], arrays["target_position"]
            )
        ndcg = arrays["ndcg"][number][None]
        return Row(record["variant"], [record], ndcg, arrays["lengths"], targets)


def _merge_seeds(seeds: Sequence[Row]) -> Row:
    first, targets = seeds[0], [seed.targets for seed in seeds if seed.targets is not None]
    return dataclasses.replace(
        first,
        records=[record for seed in seeds for record in seed.records],
        ndcg=np.concatenate([seed.ndcg for seed in seeds]),
        targets=dataclasses.replace(targets[0], ndcg=np.mean([t.ndcg for t in targets], axis=0))
        if targets
        else None,
    )
