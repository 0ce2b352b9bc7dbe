"""The main job in one command: `make demo`.

Prepares Complete Journey product types, trains recent, full and rec2pm_o with the preset `demo`, rolls
the memories forward over whole histories, and writes runs/demo/summary.json and runs/demo/summary.png.
"""

from __future__ import annotations

import time
from pathlib import Path

from absl import flags

from launch.configs import demo as preset
from launch.experiments.comparison import compare_methods, format_report
from launch.experiments.figures import draw_comparison
from rec2pm_jax import cli
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare, summary
from rec2pm_jax.evaluation.record import write_records

flags.DEFINE_string("output_dir", "runs/demo", "Directory of everything the demo makes.")


def main(_) -> None:
    began = time.time()
    output = Path(flags.FLAGS.output_dir)
    data = output / "data"
    info, _written = prepare(
        PrepareOptions(source="complete_journey", item="product_type", output_dir=str(data))
    )
    print(summary(info), flush=True)
    config = from_dict(preset.get_config().to_dict())
    results = compare_methods(config, str(data), output)
    print(f"\n{format_report(results)}")
    write_records(output / "summary.json", [row.record for row in results])
    draw_comparison(results, output / "summary.png")
    print(
        f"{time.time() - began:.0f} s in all; records in {output / 'summary.json'}, figure in "
        f"{output / 'summary.png'}"
    )


if __name__ == "__main__":
    cli.run(main)
