"""Computes the memories of all users anew for a checkpoint, from their prepared histories.

    python -m launch.rebuild_memory --workdir=runs/new --data=data/types --output=stores/new

The store of the old checkpoint goes on serving meanwhile; then start `launch.stream` with the new
--workdir and store, from the first event after the prepared ones. A stopped call goes on with the
same command. A directory is written as OUTPUT.building and renamed when it is complete; a server's
store (redis://..) must not be served from before that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from absl import flags
from tqdm import tqdm

from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.stream.engine import Options
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.rebuild import Rebuilt, rebuild
from rec2pm_jax.stream.store import open_store
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.identity import open_training_data

flags.DEFINE_string("workdir", None, "Directory of the training run that will serve.")
flags.DEFINE_string("data", "", "Prepared histories; by default those the run was trained on.")
flags.DEFINE_string("output", None, "The new store: a directory, or redis://HOST:PORT/NUMBER.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_enum(
    "memory", "float32", FORMATS, "Format of a user's memory, as launch.stream will be told."
)
flags.DEFINE_integer("workers", 1, "Workers of launch.stream that will share the store.", 1)
flags.mark_flags_as_required(["workdir", "output"])


def rebuild_into(args, address: str) -> Rebuilt:
    """Fills the store at `address`, with a progress bar."""
    config, params, meta = load_for_inference(args.workdir, args.checkpoint)
    dataset = open_training_data(args.data, args.workdir, meta)
    recommender = make_recommender(config, params, dataset)
    worker = f"0/{args.workers}"
    store = open_store(address, worker)
    try:
        with tqdm(unit="update", smoothing=0.02) as bar:

            def show(done: int, total: int) -> None:
                bar.total, bar.n = total, done
                bar.refresh()

            options = Options(memory=args.memory, worker=worker)
            return rebuild(recommender, dataset, store, options, show)
    finally:
        store.close()


def main(_) -> None:
    args = flags.FLAGS
    began, output = time.time(), args.output
    if "://" in output:
        done = rebuild_into(args, output)
    else:
        if Path(output).exists():
            raise UserError(
                f"--output={output} is there already: choose another name for the new store; the "
                "old one goes on serving."
            )
        building = f"{output.rstrip('/')}.building"
        done = rebuild_into(args, building)
        try:
            os.rename(building, output)
        except OSError as error:
            raise UserError(f"Cannot rename {building} to {output}: {error.strerror}.") from error
    going_on = f" ({done.found} were there)" if done.found else ""
    print(
        f"{done.users} users{going_on}, {done.events} events, {done.updates} memory updates as "
        f"{args.memory} in {output}, {time.time() - began:.0f} s"
    )
    if done.left_out:
        print(f"left out {done.left_out} users whose ids are too long for a store")


if __name__ == "__main__":
    cli.run(main)
