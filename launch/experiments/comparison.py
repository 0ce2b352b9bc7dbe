"""Several methods under one preset, beside the heuristics, or several runs: test, compare, report."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.bootstrap import bootstrap, paired_bootstrap
from rec2pm_jax.evaluation.report import (
    display_name,
    format_table,
    measures_tables,
    metrics_table,
    setting_line,
)
from rec2pm_jax.evaluation.spec import EvalSpec, Measures
from rec2pm_jax.runs import MEASURES, Result, evaluate_heuristics, evaluate_run, train_and_test
from rec2pm_jax.training.trained_run import load_run

DEFAULT_METHODS = ("recent", "full", "rec2pm")


def compare_methods(
    config: Config,
    data: str,
    workdir: str | Path,
    methods: Sequence[str] = DEFAULT_METHODS,
    measures: Measures = MEASURES,
) -> list[Result]:
    """Train methods that differ in `method.name` alone and evaluate them on the test split.

    Only `recent` also differs in `method.exact_entries`: it stores nothing.

    Args:
      config: everything but the method's name.
      data: directory of a prepared dataset.
      workdir: each run lives in WORKDIR/NAME, is resumed if it was stopped, skipped if complete.
      methods: names of methods.
      measures: what the evaluations measure.

    Returns:
      Heuristics, then `methods`. Records of methods carry `update_ms`, `read_ms` (B = 1, medians),
      `train_wall_s`, and `paired`: against each other method, difference and ratio of NDCG@10 with
      95 % intervals over users.

    Raises:
      UserError: as training and evaluation do.
    """
    dataset = open_dataset(data)
    # Heuristics rank items seen before, which protocol genrec leaves out.
    heuristics: list[Result] = []
    if config.data.protocol != "genrec":
        heuristics = evaluate_heuristics(config, dataset, measures=measures)
    trained = [
        train_and_test(_with_method(config, name), dataset, Path(workdir) / name, measures)
        for name in dict.fromkeys(methods)
    ]
    for row in trained:
        others = [other for other in trained if other is not row]
        row.record["paired"] = {display_name(o.record): _compare_pair(row, o) for o in others}
    return heuristics + trained


def compare_runs(
    workdirs: Sequence[str],
    data: str | None = None,
    split: str = "test",
    measures: Measures = MEASURES,
    target_types: str | None = None,
) -> list[Result]:
    """Evaluate the best checkpoints of runs on the same targets and compare each pair.

    Args:
      workdirs: directories of at least two training runs.
      data: directory of the dataset; None for the one that each run was trained on.
      split: which targets to rank.
      measures: what the evaluations measure.
      target_types: event types that are targets; None for those of the runs, which must agree.

    Returns:
      One result per run. Records carry `run`, its workdir, and `paired`: by the other runs, difference
      and ratio of NDCG@10 with 95 % intervals over users.

    Raises:
      UserError: fewer than two runs, runs with other data or other targets, or as evaluation does.
    """
    names = list(dict.fromkeys(workdirs))
    if len(names) < 2:
        raise UserError(f"--runs={','.join(workdirs)}: name at least two different runs.")
    loaded = [load_run(name, data=data) for name in names]
    other = loaded[0]
    for name, run in zip(names, loaded, strict=True):
        for what, found, expected in (
            ("data (content hash)", run.dataset.content_hash, other.dataset.content_hash),
            ("config.data.protocol", run.config.data.protocol, other.config.data.protocol),
            ("target types", *(target_types or r.config.loss.target_types for r in (run, other))),
        ):
            if found != expected:
                raise UserError(
                    f"{names[0]} and {name} differ in {what}: {expected} and {found}; runs are "
                    "compared on the same targets."
                )
    spec = EvalSpec(split, measures=measures, target_types=target_types)
    results = [evaluate_run(run, spec) for run in loaded]
    first = results[0].evaluation
    for name, row in zip(names, results, strict=True):
        own = row.evaluation
        same_users = np.array_equal(own.user, first.user)
        if not (same_users and np.array_equal(own.position, first.position)):
            raise UserError(f"{names[0]} and {name} have other held-out events (config.data).")
        row.record["run"] = name
    for row in results:
        others = [other for other in results if other is not row]
        row.record["paired"] = {o.record["run"]: _compare_pair(row, o) for o in others}
    return results


def format_runs(results: Sequence[Result]) -> str:
    """Return the setting, a row per run, and the paired difference of each pair."""
    records = [row.record for row in results]
    body = []
    for record in records:
        low, high = record["intervals"]["ndcg@10"]
        hit, gain = record["metrics"]["hr@10"], record["metrics"]["ndcg@10"]
        numbers = [f"{100 * hit:.2f}", f"{100 * gain:.2f}", f"{100 * low:.2f}-{100 * high:.2f}"]
        body.append([record["run"], display_name(record), str(record["step"]), *numbers])
    header = ["run", "method", "step", "hr@10", "ndcg@10", "ndcg@10 95 %"]
    lines = [setting_line(records[0]), "", format_table(header, body), ""]
    if further := measures_tables(records):
        lines += [further, ""]
    for a, b in itertools.combinations([record["run"] for record in records], 2):
        lines.append(_pair_line(a, b, next(r for r in records if r["run"] == a)["paired"][b]))
    return "\n".join(lines)


def format_report(results: Sequence[Result]) -> str:
    """Return the setting, the table of metrics, the cost of serving, and paired differences."""
    records = [row.record for row in results]
    cost = [
        [
            display_name(r),
            str(r["state_bytes_per_user"] or 0),
            "-" if r["update_ms"] is None else f"{r['update_ms']:.2f}",
            f"{r['read_ms']:.2f}",
            f"{r['train_wall_s']:.0f}",
        ]
        for r in records
        if "read_ms" in r
    ]
    header = ["method", "state bytes/user", "update ms", "read ms", "training s"]
    lines = [setting_line(records[-1]), "", metrics_table(records), ""]
    if further := measures_tables(records):
        lines += [further, ""]
    lines.append(format_table(header, cost))
    for record in records:
        for other, pair in record.get("paired", {}).items():
            if record["method"] != "rec2pm":
                continue
            lines.append(_pair_line(display_name(record), other, pair))
    return "\n".join(lines)


def _with_method(config: Config, name: str) -> Config:
    entries = 0 if name == "recent" else config.method.exact_entries
    method = dataclasses.replace(config.method, name=name, exact_entries=entries)
    return dataclasses.replace(config, method=method)


def _compare_pair(a: Result, b: Result) -> dict[str, list[float] | None]:
    """Return difference and ratio with intervals; no ratio if the second may be zero."""
    ours, theirs = a.evaluation.user_ndcg, b.evaluation.user_ndcg
    try:
        pair = paired_bootstrap(ours, theirs)
    except ValueError:  # the ratio is undefined in some resample
        return {"difference": list(bootstrap(ours - theirs)), "ratio": None}
    return {"difference": list(pair.difference), "ratio": list(pair.ratio)}


def _pair_line(a: str, b: str, pair: Mapping[str, Any]) -> str:
    difference, low, high = (100 * x for x in pair["difference"])
    line = (
        f"{a} - {b}: {difference:+.2f} points of NDCG@10, 95 % interval {low:+.2f} .. {high:+.2f} "
        "(paired over users)"
    )
    if pair["ratio"] is None:
        return line
    ratio, low, high = pair["ratio"]
    return f"{line}; ratio {ratio:.3f} ({low:.3f} .. {high:.3f})"
