"""Compute the memories of all users for a checkpoint, from their prepared histories.

    python -m launch.rebuild_memory --workdir=runs/new --data=data/types --output=stores/new

The store of the old checkpoint serves meanwhile. Then start `launch.stream` with the new --workdir and
store, from the first event after the prepared ones. The same command resumes a stopped call.

A directory is written as OUTPUT.building and renamed when it is complete. A server's store
(redis://..) is written in place, so nothing may serve from it before that.
"""

from __future__ import annotations

import functools
import time

from absl import flags
from tqdm import tqdm

from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices, select_table_devices
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.rebuild import open_new_store, rebuild
from rec2pm_jax.stream.users.seen import SEEN_FORMATS
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.run_checks import open_training_data

flags.DEFINE_string("workdir", None, "Directory of the training run that will serve.")
flags.DEFINE_string("data", "", "Prepared histories; by default those the run was trained on.")
flags.DEFINE_string("output", None, "The new store: a directory, or redis://HOST:PORT/NUMBER.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_enum(
    "memory", "float32", FORMATS, "Format of a user's memory, the same as for launch.stream."
)
flags.DEFINE_enum(
    "seen", "none", SEEN_FORMATS, "What is kept of seen items, the same as for launch.stream."
)
flags.DEFINE_integer("workers", 1, "Workers of launch.stream that will share the store.", 1)
flags.DEFINE_integer(
    "devices", None, "Devices that a sharded item table is divided over; by default all.", 0
)
flags.mark_flags_as_required(["workdir", "output"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    began = time.time()
    options = EngineOptions(args.memory, worker=Worker(0, args.workers), seen=args.seen)
    print(f"devices: {describe_devices()}", flush=True)
    find_devices = functools.partial(select_table_devices, wanted=args.devices)
    config, params, meta = load_for_inference(args.workdir, args.checkpoint, find_devices)
    dataset = open_training_data(args.data, args.workdir, meta)
    recommender = make_recommender(config, params, dataset, trained_items=meta["num_items"])
    with (
        open_new_store(args.output) as store,
        tqdm(unit="update", smoothing=0.02) as bar,
    ):

        def show(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.refresh()

        built = rebuild(recommender, dataset, store, options, show)
    resumed = f" ({built.found} were there)" if built.found else ""
    print(
        f"{built.users} users{resumed}, {built.events} events, {built.updates} memory updates as "
        f"{args.memory} in {args.output}, {time.time() - began:.0f} s"
    )
    if built.bookkeeping_bytes:
        print(f"{built.bookkeeping_bytes} bytes of seen items beside the memories")
    if built.left_out:
        print(f"left out {built.left_out} users whose ids are too long for a store")


if __name__ == "__main__":
    cli.run(main)
