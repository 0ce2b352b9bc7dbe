"""Recommend to all users of a dataset, of a store, or of a file of ids: Parquet or JSON lines.

    python -m launch.recommend --workdir=runs/x --output=recommended --k=20 --exclude_seen=all
    python -m launch.recommend --workdir=runs/x --store=users --output=recommended

The users are those of the dataset that the run was trained on, of `--data`, or of `--store`, whose
memories are read; `--users` names some of them. A user without events gets the most frequent items.
Rows are user, rank, item, title and score. The same command resumes a stopped call.

docs/recommending.md describes filters, files and speed.
"""

from __future__ import annotations

import time

import jax
from absl import flags
from tqdm import tqdm

from rec2pm_jax import cli
from rec2pm_jax.config import Config
from rec2pm_jax.devices import describe_devices, select_table_devices
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.bulk.files import FORMATS, building_folder
from rec2pm_jax.stream.bulk.flag_values import filters_of_flags
from rec2pm_jax.stream.bulk.run import BulkOptions, describe, recommend_all
from rec2pm_jax.stream.bulk.users import open_users, read_user_list
from rec2pm_jax.stream.lines.events import parse_time
from rec2pm_jax.stream.load import load_quietly, make_recommender
from rec2pm_jax.stream.plan import plan_search
from rec2pm_jax.training.run_checks import open_training_data

_FILTERS = ("exclude_seen", "candidates", "allow", "deny")

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_string("store", "", "Store whose users and memories are read; empty: the dataset's.")
flags.DEFINE_string("users", "", "File with the ids of users; empty: all users.")
flags.DEFINE_enum(
    "memories", "updates", ["updates", "one_pass"], "How memories of a dataset's users are made."
)
flags.DEFINE_string("output", None, "Directory to write, which must not exist.")
flags.DEFINE_enum("format", "parquet", FORMATS, "Kind of the files of rows.")
flags.DEFINE_integer("k", 20, "Items for each user.", 1)
flags.DEFINE_string("time", "", "Time of the request, for models that read times; empty: unknown.")
flags.DEFINE_string("exclude_seen", "", 'Leave out seen items: all, or {"types": [..], "days": n}.')
flags.DEFINE_string("candidates", "", "Rank these items only: ids between commas, JSON or @FILE.")
flags.DEFINE_string("allow", "", 'Only these items: ids, @FILE or {"categories": [..]}.')
flags.DEFINE_string("deny", "", 'None of these items: ids, @FILE or {"categories": [..]}.')
flags.DEFINE_integer("batch_size", BulkOptions().batch_size, "Users of a batch on a device.", 1)
flags.DEFINE_integer(
    "devices",
    None,
    "Devices that share the users, by default 1, or that a sharded table is divided over, by default "
    "all; 0 for all.",
    0,
)
flags.DEFINE_integer("users_per_file", BulkOptions().users_per_file, "Users of a file.", 1)
flags.mark_flags_as_required(["workdir", "output"])


def main(_: list[str]) -> None:
    args, began = flags.FLAGS, time.time()
    print(f"devices: {describe_devices()}", flush=True)
    config, params, meta = load_quietly(args.workdir, args.checkpoint, _find_devices)
    dataset = open_training_data(args.data, args.workdir, meta)
    model = make_recommender(config, params, dataset, trained_items=meta["num_items"])
    rules = model.catalogue.rules
    texts = {name: str(args[name].value) for name in _FILTERS}
    filters, when = filters_of_flags(texts, rules), parse_time(args.time or None, rules)
    search = plan_search(model.catalogue, args.k, (), filters, when)
    listed = read_user_list(args.users, rules) if args.users else None
    manifest = describe(model, meta, filters)
    stated = ("workdir", "checkpoint", "store", "k", "time", "memories", "format")
    manifest |= {name: args[name].value for name in stated} | {"users_file": args.users}
    devices = 1 if args.devices is None else args.devices
    options = BulkOptions(args.batch_size, devices, args.users_per_file, args.format)
    open_source = open_users(
        model,
        args.store,
        one_pass=args.memories == "one_pass",
        keeps_seen=search.seen is not None,
        now=began,
    )
    with building_folder(args.output) as folder, open_source as source:
        names = source.names if listed is None else listed.names
        with tqdm(total=len(names), unit="user", smoothing=0.02) as bar:

            def show(done: int) -> None:
                bar.n = done
                bar.refresh()

            done = recommend_all(source, names, search, when, folder, manifest, options, show)
    seconds = time.time() - began
    print(f"{done['users']} users, {done['rows']} rows in {args.output}, {seconds:.0f} s")
    if done["popular"]:
        print(f"{done['popular']} users without events got the most frequent items")
    if done["fewer"]:
        print(f"{done['fewer']} users got fewer than {args.k} items: the filters leave no more")
    if listed is not None and listed.repeated:
        print(f"skipped {listed.repeated} repeated ids in {args.users}")


def _find_devices(config: Config) -> list[jax.Device]:
    """Return the devices that a sharded table is divided over."""
    args = flags.FLAGS
    if config.model.table != "sharded":
        return []
    if args.memories == "one_pass":
        raise UserError("--memories=one_pass is not for a sharded table: leave it out.")
    return select_table_devices(config, args.devices)


if __name__ == "__main__":
    cli.run(main)
