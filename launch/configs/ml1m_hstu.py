"""generative-recommenders' public ML-1M setting, HSTU: 2 layers, 1 head of 50, protocol genrec.

Command, hardware, differences: as in ml1m_sasrec.py.
Time: about 45 minutes.
Metrics: published, HR@10 .3097 and NDCG@10 .1720; ours in results/v0.1/genrec.md.

Their model has a relative bias by position and by time. With real timestamps (ml-1m/ratings.dat) add
`--config.model.relative_bias=position_time`. The preset uses position alone, which also fits a copy
that keeps only the order of events.
"""

from __future__ import annotations

import ml_collections

from launch.configs import ml1m_sasrec


def get_config() -> ml_collections.ConfigDict:
    config = ml1m_sasrec.get_config()
    config.model.backbone = "hstu"
    config.model.relative_bias = "position"
    return config
