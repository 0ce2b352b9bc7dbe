"""MovieLens 1M, every user: does a plain sequence model reach published accuracy here?

Command:
    python -m launch.prepare --source=movielens --input=ml-1m/ratings.dat --min_item_count=5 \\
        --output_dir=data/ml1m
    python -m launch.compare --config=ml1m --data=data/ml1m --workdir=runs/ml1m \\
        --methods=full --json=runs/ml1m.json
Hardware: two CPU cores.
Time: about ten minutes for `full`.
Metrics: HR@10 .195, NDCG@10 .093 (results/ml1m.json). generative-recommenders reports HR@10 .285
    and NDCG@10 .160 for SASRec in another setting: no validation split, the best epoch on test targets.
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
