"""Delete users of a store and return unused space, while no stream writes to it.

    python -m launch.tidy_store --store=users --expired --compact
    python -m launch.tidy_store --store=users --forget=7,8

`--expired` deletes the users that had no event for the `--expire_days` of `launch.stream`, which takes
them for new users anyway. `--forget` deletes users by their ids. `--compact` rewrites a directory
without its holes, which needs room for a copy; a server rewrites its append-only file.

A directory in use is refused. The workers of a server (redis://..) have to be stopped first: a worker
that runs is refused at its next commit, and resumes from its last one when it is started again.
"""

from __future__ import annotations

import contextlib
import time

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.stores.base import (
    MAINTENANCE,
    MAX_USER_BYTES,
    delete_matching,
    open_existing_store,
)
from rec2pm_jax.stream.stores.record import is_expired

flags.DEFINE_string("store", None, "The store: a directory, or redis://HOST:PORT/NUMBER.")
flags.DEFINE_bool("expired", False, "Delete users that have expired.")
flags.DEFINE_list("forget", [], "Ids of users to delete.")
flags.DEFINE_bool("compact", False, "Return unused space to the system.")
flags.mark_flag_as_required("store")


def main(_: list[str]) -> None:
    args = flags.FLAGS
    if not (args.expired or args.forget or args.compact):
        raise UserError("There is nothing to do: pass --expired, --forget=ID,.. or --compact.")
    if long := [user for user in args.forget if len(user.encode()) > MAX_USER_BYTES]:
        raise UserError(f"--forget={long[0][:20]}..: ids have at most {MAX_USER_BYTES} bytes.")
    with contextlib.closing(open_existing_store(args.store, MAINTENANCE)) as store:
        before, now = store.size(), time.time()
        if args.forget:
            found = store.delete(args.forget)
            print(f"forgot {found} of {len(args.forget)} named users")
        if args.expired:
            count = delete_matching(store, lambda user, record: is_expired(user, record, now))
            print(f"forgot {count} expired users")
        if args.compact:
            store.compact()
        print(f"{args.store}: {before / 1e6:.2f} MB before, {store.size() / 1e6:.2f} MB now")


if __name__ == "__main__":
    cli.run(main)
