"""The setting of the speed tables on an accelerator: HSTU 16 x 8 x 64, K * S = 1000, batch 8, bfloat16.

Command, for the TPU tables of docs/performance.md (compiled, no TPU needed):
    python -m launch.aot --topology=v5e:1x1 --config=speed_hstu --json=tpu.json
    python -m launch.aot --topology=v5e:1x1 --config=speed_hstu --json=xla.json \\
        --config.compute.attention=dense
Hardware: a Linux host with libtpu.
Time: two minutes each on one core.
Metrics: none; nothing is trained.

One set of 128 negatives serves all positions of a step. With own negatives for every position, as in
the CPU rows of the tables, a TPU would gather a million rows of half a tile each.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config

ITEMS = 20_000


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 200
    config.data.segments = 5
    config.model.backbone = "hstu"
    config.model.layers = 16
    config.model.heads = 8
    config.model.dim = 64
    config.model.dtype = "bfloat16"
    config.method.slots = 4
    config.loss.negatives = 128
    config.loss.sharing = "shared"
    config.train.batch_size = 8
    return config
