"""Several methods under one preset, beside the heuristics: train, test, and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluation.bootstrap import paired_bootstrap
from rec2pm_jax.evaluation.report import display_name, format_table, metrics_table, setting_line
from rec2pm_jax.runs import Result, evaluate_heuristics, train_and_test

DEFAULT_METHODS = ("recent", "full", "rec2pm")
_WITH_SKETCH = ("rec2pm", "tok_serial")  # memories of tokens


def compare_methods(
    config: Config, data: str, workdir: str | Path, methods: Sequence[str] = DEFAULT_METHODS
) -> list[Result]:
    """Train methods that differ in `method.name` alone and evaluate them on the test split.

    Only memories of tokens keep `method.sketch`: `full` does worse with one.

    Args:
      config: everything but the method's name.
      data: directory of a prepared dataset.
      workdir: each run lives in WORKDIR/NAME, is resumed if it was stopped, skipped if complete.
      methods: names of methods.

    Returns:
      Heuristics, then `methods`. Records of methods carry `update_ms`, `read_ms` (B = 1, medians),
      `train_wall_s`, and `paired`: against each other method, difference and ratio of NDCG@10 with
      95 % intervals over users.

    Raises:
      UserError: as training and evaluation do.
    """
    dataset = open_dataset(data)
    # Heuristics rank items seen before, which protocol genrec leaves out.
    heuristics = [] if config.data.protocol == "genrec" else evaluate_heuristics(config, dataset)
    trained = [
        train_and_test(_with_method(config, name), dataset, Path(workdir) / name)
        for name in dict.fromkeys(methods)
    ]
    for row in trained:
        others = [other for other in trained if other is not row]
        row.record["paired"] = {display_name(o.record): _compare_pair(row, o) for o in others}
    return heuristics + trained


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
    lines = [setting_line(records[-1]), "", metrics_table(records), "", format_table(header, cost)]
    for record in records:
        for other, pair in record.get("paired", {}).items():
            if record["method"] != "rec2pm":
                continue
            difference, low, high = (100 * x for x in pair["difference"])
            lines.append(
                f"{display_name(record)} - {other}: {difference:+.2f} points of NDCG@10, "
                f"95 % interval {low:+.2f} .. {high:+.2f} (paired over users); ratio "
                f"{pair['ratio'][0]:.3f} ({pair['ratio'][1]:.3f} .. {pair['ratio'][2]:.3f})"
            )
    return "\n".join(lines)


def _with_method(config: Config, name: str) -> Config:
    sketch = config.method.sketch if name in _WITH_SKETCH else 0
    method = dataclasses.replace(config.method, name=name, sketch=sketch)
    return dataclasses.replace(config, method=method)


def _compare_pair(a: Result, b: Result) -> dict[str, list[float]]:
    pair = paired_bootstrap(a.evaluation.user_ndcg, b.evaluation.user_ndcg)
    return {"difference": list(pair.difference), "ratio": list(pair.ratio)}
