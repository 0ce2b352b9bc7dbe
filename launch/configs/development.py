"""The development setting of every suite: small enough that 24 core-hours make all of `results/`.

Command:
    python -m launch.reproduce --suite=main --data=data --workdir=runs/reproduce
Hardware: CPU cores, one per run.
Time: 20 minutes per run at most.
Metrics: results/main.md.
"""

from __future__ import annotations

import ml_collections

from launch.configs import complete_journey


def get_config() -> ml_collections.ConfigDict:
    config = complete_journey.get_config()
    # Quarter batches stay in a core's cache: 1.6 times (rec2pm) to 2 times (full) the speed.
    config.optim.accumulate = 4
    config.train.steps = 1500  # of the slowest method in 20 minutes
    return config
