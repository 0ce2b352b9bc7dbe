"""`make demo`: all of Complete Journey in minutes.

Command: make demo
Hardware: two CPU cores.
Time: at most ten minutes after installation.
Metrics: printed as a table; see README.md for what to expect.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 25
    config.data.segments = 8
    config.train.batch_size = 16
    config.train.steps = 500
    config.train.eval_every = 250
    config.train.eval_users = 400
    config.train.checkpoint_every = 250
    return config
