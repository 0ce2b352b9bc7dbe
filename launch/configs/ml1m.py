"""MovieLens 1M, every user: does a plain sequence model learn here what its authors report?

Command:
    python -m launch.prepare --source=movielens --input=ml-1m/ratings.dat --min_item_count=5 \\
        --output_dir=data/ml1m
    python -m launch.compare --config=launch/configs/ml1m.py --data=data/ml1m --workdir=runs/ml1m \\
        --methods=full --json=results/ml1m.json
Hardware: two CPU cores.
Time: about ten minutes for `full`.
Metrics: results/ml1m.json. Not the setting of generative-recommenders' table (HR@10 .285 and NDCG@10
    .160 for SASRec), which has no validation split and reports the best test epoch: a neighbour.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 50
    config.data.segments = 4
    config.data.protocol = "leave_one_out"
    config.model.dropout = 0.2
    config.train.batch_size = 64
    config.train.steps = 600
    config.train.eval_every = 200
    config.train.eval_users = 1000
    config.train.checkpoint_every = 200
    return config
