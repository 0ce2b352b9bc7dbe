"""The paper's industrial scale: 550 million items in a table sharded over a pod.

Command: launch/tpu_pod.sh (docs/distributed.md), which runs on every worker
    python -m launch.train --distributed --config=industrial --data=DIR --workdir=DIR
Hardware: TPU v5e-256, 16 GiB per chip; batch 8 per chip. Fewer chips take a smaller batch:
    --config.train.batch_size=64 on 8 chips.
Time: not measured, for want of a TPU; docs/performance.md has the compiler's figures.
Metrics: the paper's industrial data are not public.

As in the paper: K * S = 1000 events, HSTU with 16 layers and 8 heads, D = 64, float32, rec2pm_o.
A TPU prefers one head, --config.model.heads=1 (docs/performance.md).
Ours: 4,096 negatives shared by the whole step, and row-wise Adagrad for the table, which keeps one
float per item where Adam keeps 128.
"""

from __future__ import annotations

import ml_collections

from launch.configs.paper_merrec_hstu import get_config as paper_merrec_hstu

ITEMS = 550_000_000


def get_config() -> ml_collections.ConfigDict:
    config = paper_merrec_hstu()
    config.model.table = "sharded"
    config.loss.negatives = 4096
    config.optim.table_learning_rate = 0.01
    config.train.batch_size = 2048
    config.train.eval_users = 10_000
    config.compute.devices = 0
    return config
