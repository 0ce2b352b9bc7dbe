"""Forgets users of a store and gives unused space back, while no stream writes to it.

    python -m launch.tidy_store --store=users --expired --compact
    python -m launch.tidy_store --store=users --forget=7,8

`--expired` deletes the users whose `launch.stream --expire_days` has passed (a stream takes them for
new ones anyway), `--forget` the named ones. `--compact` rewrites a directory without its holes, which
takes as much room again while it does; a server is told to rewrite its append-only file. A directory
in use is refused; the workers of a server (redis://..) have to be stopped first.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.record import has_expired
from rec2pm_jax.stream.store import open_store, sweep

flags.DEFINE_string("store", None, "The store: a directory, or redis://HOST:PORT/NUMBER.")
flags.DEFINE_bool("expired", False, "Delete users whose time is over.")
flags.DEFINE_list("forget", [], "Ids of users to delete.")
flags.DEFINE_bool("compact", False, "Give unused space back.")
flags.mark_flag_as_required("store")


def main(_) -> None:
    args = flags.FLAGS
    if not (args.expired or args.forget or args.compact):
        raise UserError("There is nothing to do: pass --expired, --forget=ID,.. or --compact.")
    if "://" not in args.store and not (Path(args.store) / "data.mdb").is_file():
        raise UserError(f"--store={args.store}: there is no store in this directory.")
    store = open_store(args.store, worker="tidy_store")  # a name of no worker: their fences stay
    try:
        before, now = store.size(), time.time()
        if args.forget:
            found = store.delete(args.forget)
            print(f"forgot {found} of {len(args.forget)} named users")
        if args.expired:
            gone = sweep(store, lambda user, record: has_expired(user, record, now))
            print(f"forgot {gone} expired users")
        if args.compact:
            store.compact()
        print(f"{args.store}: {before / 1e6:.2f} MB before, {store.size() / 1e6:.2f} MB now")
    finally:
        store.close()


if __name__ == "__main__":
    cli.run(main)
