"""Inspect a prepared dataset: a report of one screen, problems, and figures.

    python -m launch.inspect_data --data=data/types --output=runs/inspect

Large datasets are sampled by users (--max_events); the report says so. Figures need matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluation.inspection import format_report, inspect_dataset
from rec2pm_jax.evaluation.inspection.figures import draw_figures
from rec2pm_jax.evaluation.record import dataset_name
from rec2pm_jax.plotting import pyplot

flags.DEFINE_string("data", None, "Directory made by launch.prepare.")
flags.DEFINE_string("output", "", "Directory for PNGs; empty: none.")
flags.DEFINE_integer("max_events", 5_000_000, "Events of sampled users that are looked at.", 1)
flags.mark_flags_as_required(["data"])


def main(_: list[str]) -> None:
    """Print the report, and draw the figures if --output is given."""
    args = flags.FLAGS
    if args.output:
        pyplot()  # reports at once that matplotlib is missing
    dataset = open_dataset(args.data)
    found = inspect_dataset(dataset, args.max_events)
    name = dataset_name(dataset.info)
    print(format_report(found, name))
    if args.output:
        paths = draw_figures(found, f"{name} ({args.data})", Path(args.output))
        print(f"\nfigures: {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    cli.run(main)
