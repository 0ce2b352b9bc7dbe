"""`make demo`: all of Complete Journey in minutes.

Command: make demo
Hardware: two CPU cores.
Time: at most ten minutes after installation.
Metrics: printed as a table; docs/results.md has those of version 0.1.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 16
    config.data.segments = 25
    config.model.dropout = 0.0  # training sees every event about twice
    config.compute.accumulate = 8  # one window at a time fits into a core's cache: 1.7 times faster
    config.train.batch_size = 8
    config.train.steps = 700
    config.train.eval_every = 350
    config.train.eval_users = 300
    config.train.checkpoint_every = 350
    return config
