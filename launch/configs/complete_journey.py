"""Complete Journey product types, long enough to compare: recent, full and rec2pm_o.

Command:
    python -m launch.prepare --source=complete_journey --item=product_type --output_dir=data/types
    python -m launch.compare --config=launch/configs/complete_journey.py --data=data/types \\
        --workdir=runs/complete_journey --json=results/complete_journey.json \\
        --png=results/complete_journey.png
Hardware: two CPU cores.
Time: at most an hour per method; see `train_wall_s` in the records.
Metrics: results/complete_journey.json.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 25
    config.data.segments = 16
    config.train.batch_size = 16
    config.train.steps = 2000
    config.train.eval_every = 250
    config.train.eval_users = 600
    config.train.checkpoint_every = 250
    return config
