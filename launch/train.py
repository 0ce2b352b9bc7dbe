"""Train one method and validate it on the way; the same command continues a stopped run exactly.

If logs were appended to --data since then, training continues with them: new items get rows. With
more --config.train.steps a complete run trains on.

    python -m launch.train --config=synthetic \\
        --data=data/synthetic --workdir=runs/synthetic --config.train.steps=2000

For a job of several processes see docs/distributed.md.
"""

from __future__ import annotations

from absl import flags

from launch.configs.flags import define_config, get_config
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.training.distributed import distributed_job
from rec2pm_jax.training.loop import train_and_evaluate
from rec2pm_jax.training.observers import Observers
from rec2pm_jax.training.run_checks import fit_to_data
from rec2pm_jax.training.trackers import open_tracker

define_config()
flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, logs and summary.")
flags.DEFINE_string("profile", "", "Directory for a trace of a few steps after the warm-up.")
flags.DEFINE_multi_string(
    "tracker", [], "Also send metrics to mlflow, mlflow:URI, wandb or wandb:PROJECT."
)
flags.mark_flags_as_required(["data", "workdir"])
flags.DEFINE_bool(
    "distributed",
    False,
    "One process of a job on several hosts; on Cloud TPU, Slurm and Open MPI it finds the others.",
)
flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, elsewhere; implies --distributed."
)
flags.DEFINE_integer("num_processes", None, "Processes of the job, with --coordinator_address.")
flags.DEFINE_integer("process_id", None, "This process's number, from 0, likewise.")


def main(_: list[str]) -> None:
    args = flags.FLAGS
    with distributed_job(
        args.distributed, args.coordinator_address, args.num_processes, args.process_id
    ):
        config = get_config()  # its errors come before those of the data
        observers = Observers(trackers=[open_tracker(text) for text in args.tracker])
        dataset = open_dataset(args.data)
        config = fit_to_data(config, dataset)
        method = make_method(config, dataset.num_items)
        train_and_evaluate(
            *(config, dataset, method, args.workdir), profile=args.profile, observers=observers
        )


if __name__ == "__main__":
    cli.run(main)
