"""Rec2PM on the synthetic set: a hidden long-term taste that shows only in old events.

Command:
    python -m launch.prepare --source=synthetic --output_dir=data/synthetic
    python -m launch.compare --config=synthetic --data=data/synthetic --workdir=runs/synthetic \\
        --json=runs/synthetic.json
Hardware: two CPU cores.
Time: under two minutes per method.
Metrics: results/synthetic.json. A model that cannot know the taste gets NDCG@10 .28, one that
    knows it .82.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 10
    config.data.segments = 8
    config.data.protocol = "leave_one_out"
    config.model.dropout = 0.0
    config.train.steps = 600
    config.train.eval_every = 200
    config.train.eval_users = 500
    config.train.checkpoint_every = 200
    return config
