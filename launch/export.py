"""Export a trained model: `update` and `read` as programs that need JAX alone, not this package.

    python -m launch.export --workdir=runs/x --output=exported/x
    python examples/serve_exported.py exported/x < events.jsonl > answers.jsonl

The directory runs on CPUs, NVIDIA GPUs and TPUs with any batch size; its layout is described in
`rec2pm_jax/stream/export/directory.py`. `read` returns the best `--k` items and the vectors that score
the catalogue.
"""

from __future__ import annotations

from absl import flags

from rec2pm_jax import cli
from rec2pm_jax.devices import describe_devices
from rec2pm_jax.stream.export.directory import write_export
from rec2pm_jax.stream.export.new_directory import check_not_existing
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.run_checks import open_training_data

flags.DEFINE_string("workdir", None, "Directory of a training run.")
flags.DEFINE_string("output", None, "Directory to write, which must not exist.")
flags.DEFINE_string("data", "", "Prepared dataset; by default the one the run was trained on.")
flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "Which checkpoint of the run.")
flags.DEFINE_integer("k", 128, "Items that `read` returns: those shown and those excluded.", 1)
flags.mark_flags_as_required(["workdir", "output"])


def main(_: list[str]) -> None:
    args = flags.FLAGS
    check_not_existing(args.output)
    print(f"devices: {describe_devices()}", flush=True)
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
