"""Exports a trained model: `update` and `read` as programs that need JAX alone, not this package.

    python -m launch.export --workdir=runs/x --output=exported/x
    python examples/serve_exported.py exported/x < events.jsonl > answers.jsonl

The directory (see `rec2pm_jax/stream/export.py`) runs on CPUs, NVIDIA GPUs and TPUs with any batch
size. `read` returns the best `--k` items and the vectors that scored them.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.stream.export import check_free, write_export
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.train.checkpoint import load_for_inference
from rec2pm_jax.train.identity import open_training_data

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string("output", None, "Directory to write; it must not be there yet.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_integer("k", 128, "Items that a read returns: those shown and those left out.", 1)
flags.mark_flags_as_required(["workdir", "output"])


def main(_) -> None:
    args = flags.FLAGS
    check_free(Path(args.output))
    config, params, meta = load_for_inference(args.workdir, args.checkpoint)
    dataset = open_training_data(args.data, args.workdir, meta)
    recommender = make_recommender(config, params, dataset)
    manifest = write_export(recommender, meta, args.output, args.k)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(
        f"{' and '.join(manifest['functions'])} for {', '.join(manifest['platforms'])}, "
        f"{manifest['serving']['items']} items, {size / 1e6:.1f} MB, in {args.output}"
    )


if __name__ == "__main__":
    cli.run(main)
