"""Looks at a prepared dataset: a one-screen report, problems flagged, and figures.

    python -m launch.inspect --data=data/types --output=runs/inspect

Big data are sampled by users (--max_events); the report says so. Figures need matplotlib.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch.overview import draw, report
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluate.inspection import inspect
from rec2pm_jax.evaluate.record import dataset_name
from rec2pm_jax.plotting import pyplot

flags.DEFINE_string("data", None, "Directory made by launch.prepare.")
flags.DEFINE_string("output", "", "Directory for PNGs; empty: none.")
flags.DEFINE_integer("max_events", 5_000_000, "Events of sampled users that are looked at.", 1)
flags.mark_flags_as_required(["data"])


def main(_) -> None:
    args = flags.FLAGS
    if args.output:
        pyplot()  # says at once that matplotlib is missing
    dataset = open_dataset(args.data)
    found = inspect(dataset, args.max_events)
    name = dataset_name(dataset.info)
    print(report(found, name))
    if args.output:
        paths = draw(found, f"{name} ({args.data})", Path(args.output))
        print(f"\nfigures: {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    cli.run(main)
