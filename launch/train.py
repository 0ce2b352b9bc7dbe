"""Trains one method and validates it on the way; the same command continues a killed run exactly.

Where logs were appended to --data since then, it goes on with these: new items get rows, and with
more --config.train.steps a complete run trains on.

    python -m launch.train --config=launch/configs/synthetic.py \\
        --data=data/synthetic --workdir=runs/synthetic --config.train.steps=2000

A job of several processes: see launch/distributed.py for flags and exit codes.
"""

from __future__ import annotations

from absl import flags

from launch import distributed
from launch.configs.flags import define_config, get_config
from rec2pm_jax import cli
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.evaluate.validation import validate
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.train.loop import train_and_evaluate

define_config()
flags.DEFINE_string("data", None, "Directory of a prepared dataset (see launch.prepare).")
flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, logs and summary.")
flags.DEFINE_string("profile", "", "Directory for a trace of a few steps after the warm-up.")
flags.mark_flags_as_required(["data", "workdir"])


def main(_) -> None:
    with distributed.job():
        _train()


def _train() -> None:
    config = get_config()
    dataset = open_dataset(flags.FLAGS.data)
    method = make_method(config, dataset.num_items)

    def on_validation(params):
        return validate(method, params, dataset, max_users=config.train.eval_users)

    args = flags.FLAGS
    train_and_evaluate(config, dataset, method, args.workdir, on_validation, args.profile)


if __name__ == "__main__":
    cli.run(main)
