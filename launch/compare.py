"""Trains several methods under one preset, evaluates them beside the heuristics, draws the result.

    python -m launch.compare --config=launch/configs/synthetic.py --data=data/synthetic \\
        --workdir=runs/synthetic --json=results/synthetic.json

The methods differ in `method.name` alone: same backbone, data, budget of steps and optimiser; only
that `method.sketch` is for memories of tokens: `full` does worse with one (results/main.md), `recent`
was not tried. Every run lives in WORKDIR/NAME, is continued where it stopped and skipped once
complete. For grids with several seeds and datasets see `launch.reproduce`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from launch import cli
from launch.runs import Result, heuristics, train_and_test
from rec2pm_jax.config import Config
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluate.bootstrap import paired_bootstrap
from rec2pm_jax.evaluate.record import write_records
from rec2pm_jax.evaluate.report import display_name, format_table, metrics_table, setting_line
from rec2pm_jax.methods.registry import METHODS

DEFAULT_METHODS = ("recent", "full", "rec2pm")


def compare(
    config: Config, data: str, workdir: str | Path, methods: Sequence[str] = DEFAULT_METHODS
) -> list[Result]:
    """Heuristics first, then `methods`, each evaluated on the test split of the preset's protocol.

    Records of trained methods carry `update_ms`, `read_ms` (B = 1, medians), `train_wall_s`, and
    `paired`: this method against each other trained method, difference and ratio of NDCG@10 with
    95 % intervals over users.

    Raises:
      UserError: as training and evaluation do.
    """
    dataset = open_dataset(data)
    configs = {name: _with_method(config, name) for name in methods}
    # Heuristics rank items seen before, which this protocol leaves out.
    results = [] if config.data.protocol == "genrec" else heuristics(config, dataset)
    trained = [train_and_test(c, dataset, Path(workdir) / name) for name, c in configs.items()]
    for row in trained:
        others = [other for other in trained if other is not row]
        row.record["paired"] = {display_name(o.record): _paired(row, o) for o in others}
    return results + trained


def _with_method(config: Config, name: str) -> Config:
    sketch = config.method.sketch if name in ("rec2pm", "tok_serial") else 0
    method = dataclasses.replace(config.method, name=name, sketch=sketch)
    return dataclasses.replace(config, method=method)


def _paired(a: Result, b: Result) -> dict[str, list[float]]:
    pair = paired_bootstrap(a.evaluation.user_ndcg, b.evaluation.user_ndcg)
    return {"difference": list(pair.difference), "ratio": list(pair.ratio)}


def report(results: Sequence[Result]) -> str:
    """The setting, the table of metrics, the cost of serving, and paired differences."""
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


COLOURS = {
    "rec2pm": "#c0392b",
    "tok_serial": "#2980b9",
    "kv_mask": "#27ae60",
    "full": "#34495e",
    "recent": "#7f8c8d",
}


def pyplot():
    """matplotlib's pyplot, without a display.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("Figures need matplotlib: pip install -r requirements-demo.txt.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure, path: str | Path) -> None:
    """Writes a PNG under a temporary name, renames it and closes the figure."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=150, format="png")
    temporary.replace(path)
    pyplot().close(figure)


def draw(results: Sequence[Result], path: str | Path) -> None:
    """Two panels as PNG: NDCG@10 of every row with its interval, and by length of the history.

    Raises:
      UserError: matplotlib is not installed.
    """
    figure, (bars, curves) = pyplot().subplots(1, 2, figsize=(11, 4.2))
    names = [display_name(row.record) for row in results]
    values = np.array([100 * row.record["metrics"]["ndcg@10"] for row in results])
    ends = 100 * np.array([row.record["intervals"]["ndcg@10"] for row in results])
    errors = np.abs(ends.T - values)
    fill = [COLOURS.get(row.record["method"], "#d5d8dc") for row in results]
    bars.barh(names, values, xerr=errors, color=fill, error_kw={"lw": 1, "capsize": 2})
    for i, (value, row) in enumerate(zip(values, results, strict=True)):
        state = row.record["state_bytes_per_user"]
        label = f" {value:.2f}" + (f"   {state} B/user" if state else "")
        bars.text(ends[i, 1], i, label, va="center", fontsize=9)
    bars.set_xlim(0, ends.max() * 1.3)
    bars.set_xlabel("NDCG@10, %, full catalogue (bars: 95 % interval over users)")
    bars.invert_yaxis()
    for row in results:
        if row.record["method"] in COLOURS:
            _curve(curves, row, COLOURS[row.record["method"]])
    curves.set_xscale("log")
    curves.set_xlabel("events in the user's history")
    curves.set_ylabel("NDCG@10, %")
    curves.legend(frameon=False)
    for axis in (bars, curves):
        axis.spines[["top", "right"]].set_visible(False)
    first = results[-1].record
    title = (
        f"{first['dataset']}, {first['split']} split, {first['protocol']}, {first['users']} users"
    )
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    save(figure, path)


def _curve(axis, row: Result, colour: str) -> None:
    """Mean NDCG@10 of users by history length, in eight groups of equal size."""
    evaluation = row.evaluation
    users, last = np.unique(evaluation.user[::-1], return_index=True)
    lengths = evaluation.position[::-1][last]
    order = np.argsort(lengths, kind="stable")
    groups = np.array_split(order, min(8, len(users)))
    x = [np.median(lengths[g]) for g in groups]
    y = [100 * evaluation.user_ndcg[g].mean() for g in groups]
    axis.plot(x, y, marker="o", ms=4, color=colour, label=display_name(row.record))


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
    flags.DEFINE_string("workdir", None, "Directory that holds one run per method.")
    flags.DEFINE_string("json", "", "File for the list of records.")
    flags.DEFINE_string("png", "", "File for the figure.")
    flags.DEFINE_list("methods", list(DEFAULT_METHODS), "Methods to train.")
    flags.mark_flags_as_required(["data", "workdir"])


def main(_) -> None:
    args = flags.FLAGS
    unknown = [name for name in args.methods if name not in METHODS]
    if unknown:
        raise UserError(f"--methods: {unknown[0]} is unknown; choose from {', '.join(METHODS)}.")
    began = time.time()
    results = compare(cli.get_config(), args.data, args.workdir, args.methods)
    print(f"\n{report(results)}\n{time.time() - began:.0f} s in all")
    if args.json:
        write_records(args.json, [row.record for row in results])
        print(f"records in {args.json}")
    if args.png:
        draw(results, args.png)
        print(f"figure in {args.png}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)
