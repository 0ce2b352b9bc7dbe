"""Export vectors of users and items: their inner products are the model's scores.

    python -m launch.vectors --workdir=runs/x --output=vectors/x
    python -m launch.vectors --workdir=runs/x --nearest=BANANAS

The first command writes vectors of all items and users, and the users' memories and own items. The
second prints the items most similar to one item, with the cosine of their vectors. docs/vectors.md
describes the files.
"""

from __future__ import annotations

import contextlib
import time

from absl import flags
from tqdm import tqdm

from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.codec import FORMATS as MEMORY_FORMATS
from rec2pm_jax.stream.all_users import users_of_dataset, users_of_store
from rec2pm_jax.stream.compute.vectors import nearest_items
from rec2pm_jax.stream.export.new_directory import check_not_existing
from rec2pm_jax.stream.export.vectors import FORMATS, VectorOptions, write_vectors
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.stores.base import open_existing_store
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.run_checks import open_training_data

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string("output", "", "Directory to write, which must not exist.")
flags.DEFINE_string("nearest", "", "Print the items nearest to this one.")
flags.DEFINE_integer("k", 10, "How many nearest items.", 1)
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_string(
    "store", "", "Users of this store instead of the dataset's: a directory or redis://.."
)
flags.DEFINE_enum(
    "memory", None, MEMORY_FORMATS, "Format of the memory of the dataset's users; default float32."
)
flags.DEFINE_enum(
    "format", "parquet", FORMATS, "Vectors as columns, or as arrays beside the tables."
)
flags.DEFINE_string(
    "time", "", "Time of the request, for models that read times; empty: it is not known."
)
flags.mark_flag_as_required("workdir")


def main(_: list[str]) -> None:
    args = flags.FLAGS
    began = time.time()
    if not (args.output or args.nearest):
        raise UserError("There is nothing to do: pass --output=DIRECTORY or --nearest=ITEM.")
    if args.store and args.memory:
        raise UserError("--memory is for users of a dataset; a store has its own format.")
    if args.output:
        check_not_existing(args.output)
    print(f"devices: {describe_devices()}", flush=True)
    config, params, meta = load_for_inference(args.workdir, args.checkpoint)
    dataset = open_training_data(args.data, args.workdir, meta)
    recommender = make_recommender(config, params, dataset)
    if args.nearest:
        for item, title, score in nearest_items(recommender, args.nearest, args.k):
            print(f"{score:6.3f}  {item}  {title}")
    if not args.output:
        return
    checkpoint = {"name": args.checkpoint, "step": meta["step"]}
    options = VectorOptions(args.format, args.time or None, checkpoint)
    with contextlib.ExitStack() as stack:
        if args.store:
            store = open_existing_store(args.store, "vectors")
            stack.callback(store.close)
            users = users_of_store(recommender, store)
        else:
            users = users_of_dataset(recommender, args.memory or "float32")
        bar = stack.enter_context(tqdm(total=users.total, unit="user"))
        made = write_vectors(users, args.output, options, lambda done: bar.update(done - bar.n))
    size = sum(file["bytes"] for file in made["files"].values())
    print(
        f"{made['items']} items, {made['users']} users, {made['own_items']} own items, dimension "
        f"{made['dimension']}, {size / 1e6:.1f} MB, in {args.output}, {time.time() - began:.0f} s"
    )
    if made["users_without_events"]:
        print(
            f"left out {made['users_without_events']} users without events: they get the items of "
            "the highest count"
        )


if __name__ == "__main__":
    cli.run(main)
