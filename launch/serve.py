"""Serve a trained model over HTTP: events come in, recommendations go out.

    python -m launch.serve --workdir=runs/x --store=users
    curl localhost:8000/events -d '{"user": "7", "item": "42", "time": 1483271606}'
    curl localhost:8000/recommend -d '{"user": "7", "recommend": 5}'

It is the engine of `launch.stream` with the same store and the same answers. docs/serving.md describes
the routes, durability, limits, several workers, and how to change to a new checkpoint.
"""

from __future__ import annotations

import contextlib
import sys

from absl import flags

from launch.configs.engine_flags import define_engine, get_options
from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.serve import require_extra
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.opening import ModelPaths, open_engine
from rec2pm_jax.stream.process import configure_interpreter, watch_stop_signals
from rec2pm_jax.stream.stores.base import MemoryStore, open_store

define_engine(commit_s=0.1)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine.")
flags.DEFINE_integer("port", 8000, "Port to listen at; 0 for a free one.", 0, 65535)
flags.DEFINE_enum(
    "ack", "commit", ["commit", "received"], "When events are acknowledged: committed or applied."
)
flags.DEFINE_integer("max_waiting", 1000, "Requests that may wait; further ones get 429.", 1)
flags.DEFINE_integer("max_body_kb", 1024, "Largest body in KiB; larger ones get 413.", 1, 1 << 20)
flags.DEFINE_bool("page", True, "Serve the page for people at /.")
flags.DEFINE_list(
    "compare", [], "Directories of other runs on the same dataset, which the page compares."
)


def main(_: list[str]) -> None:
    args = flags.FLAGS
    require_extra()
    from rec2pm_jax.serve.admission import Admission
    from rec2pm_jax.serve.app import make_app
    from rec2pm_jax.serve.engine_thread import EngineThread
    from rec2pm_jax.serve.page_routes import open_page
    from rec2pm_jax.serve.process import run_service
    from rec2pm_jax.serve.service import Service
    from rec2pm_jax.serve.users import warm_up_users

    watch_stop_signals()
    options = get_options(args)
    intervals = Intervals(commit_s=args.commit_s if args.store else float("inf"))
    print(f"devices: {describe_devices()}", file=sys.stderr)
    paths = ModelPaths(args.workdir, args.data, args.checkpoint, args.items)
    recommender = paths.load()
    with contextlib.ExitStack() as stack:
        store = open_store(args.store, options.worker.name) if args.store else MemoryStore()
        stack.callback(store.close)
        engine, items = open_engine(paths, recommender, store, options)
        engine.warm_up()
        warm_up_users(engine.recommender)
        page = open_page(engine, args.compare) if args.page else []
        configure_interpreter()
        driver = Driver(engine, intervals)
        thread = EngineThread(driver, items.poll, waits_for_commit=args.ack == "commit")
        service = Service(thread, Admission(args.max_waiting), args.max_body_kb << 10)
        run_service(
            service,
            make_app(service, page),
            args.host,
            args.port,
            lambda port: print(
                f"serving at http://{args.host}:{port}", file=sys.stderr, flush=True
            ),
        )
    print("\n".join([*driver.summary.format_report(), *items.notes()]), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
