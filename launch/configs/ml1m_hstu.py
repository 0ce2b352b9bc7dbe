"""generative-recommenders' public ML-1M setting, HSTU: 2 layers, 1 head of 50, protocol genrec.

Command, hardware, differences: as in ml1m_sasrec.py, except for initial values. Projections start as
theirs do, positions with a standard deviation of .124 (theirs: .088), and output biases at 0 (theirs:
uniform within .142).
Time: about 45 minutes.
Metrics: published, HR@10 .3097 and NDCG@10 .1720; ours in results/genrec.md.

N, which divides attention scores, is theirs: 200 events, 10 of their outputs, and 1.

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
    config.model.score_norm = 211.0
    return config
