"""Serve a trained model over HTTP: events come in, recommendations go out.

    python -m launch.serve --workdir=runs/x --store=users
    curl localhost:8000/events -d '{"user": "7", "item": "42", "time": 1483271606}'
    curl localhost:8000/recommend -d '{"user": "7", "recommend": 5}'

It is the engine of `launch.stream` with the same store and the same answers. docs/serving.md describes
the routes, durability, limits, several workers, and how to change to a new checkpoint.
"""

from __future__ import annotations

import sys

from absl import flags

from launch.configs.engine_flags import define_engine, get_options
from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.serve import require_extra
from rec2pm_jax.stream.opening import ModelPaths

define_engine(commit_s=0.1)
flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0 for all of this machine.")
flags.DEFINE_integer("port", 8000, "Port to listen at; 0 for a free one.", 0, 65535)
flags.DEFINE_string(
    "events",
    "",
    "Source of events beside HTTP: topic (kafka://HOST:PORT/TOPIC), file or directory.",
)
flags.DEFINE_string("journal", "", "Directory that gets all events as JSON lines; for /swap.")
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
    from rec2pm_jax.serve.process import ServiceOptions, serve

    print(f"devices: {describe_devices()}", file=sys.stderr)
    serve(
        ModelPaths(args.workdir, args.data, args.checkpoint, args.items, args.devices),
        args.store,
        get_options(args),
        ServiceOptions(
            host=args.host,
            port=args.port,
            events=args.events,
            journal=args.journal,
            ack=args.ack,
            commit_s=args.commit_s,
            max_waiting=args.max_waiting,
            max_body_bytes=args.max_body_kb << 10,
            page=args.page,
            compare=tuple(args.compare),
        ),
    )


if __name__ == "__main__":
    cli.run(main)
