"""generative-recommenders' public ML-1M setting, HSTU-large: 8 layers, 2 heads of 25, protocol genrec.

Command, hardware, differences: as in ml1m_hstu.py, N of 211 included.
Time: about ten hours on one CPU core (estimated); use an accelerator.
Metrics: published, HR@10 .3294 and NDCG@10 .1893.
"""

from __future__ import annotations

import ml_collections

from launch.configs import ml1m_hstu


def get_config() -> ml_collections.ConfigDict:
    config = ml1m_hstu.get_config()
    config.model.layers = 8
    config.model.heads = 2
    return config
