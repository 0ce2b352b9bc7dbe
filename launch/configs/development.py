"""A start for your own data: small enough for one core.

Command:
    python -m launch.prepare --source=complete_journey --item=product_type \\
        --output_dir=data/complete_journey_types
    python -m launch.reproduce --suite=main --data=data --workdir=runs/reproduce
Hardware: CPU cores, one per run, or a GPU that all runs share.
Time: 3 (recent) to 20 (rec2pm_a) minutes per run on a core; HSTU's slowest takes 27.
Metrics: docs/results.md; records in results/v0.1/main.md.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 25
    config.data.segments = 16
    config.compute.accumulate = 4  # a quarter batch fits into a core's cache: 1.6 to 2 times faster
    config.train.batch_size = 16
    config.train.steps = 1500  # of the slowest method (with SASRec) in about 20 minutes
    config.train.eval_every = 500
    config.train.eval_users = 600
    config.train.checkpoint_every = 500
    return config
