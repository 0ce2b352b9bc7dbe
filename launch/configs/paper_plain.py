"""The paper's plain recipe on Complete Journey: L = L_AR + L_con and M_k = m_k, nothing else.

No running mean, no recall, readers see reference memories only, the reference pass sees the whole
window, and kernels start at random. Suite `ablation` measures the default recipe against it.

Command:
    python -m launch.compare --config=paper_plain --data=data/types --workdir=runs/paper_plain \\
        --methods=rec2pm
Hardware, time: as development.py.
Metrics: NDCG@10 .076 after 750 steps, where the default recipe has .103 (results/v0.1/ablation.md).
"""

from __future__ import annotations

import ml_collections

from launch.configs import development


def get_config() -> ml_collections.ConfigDict:
    config = development.get_config()
    config.model.identity_init = False
    config.method.plain_memory = True
    config.method.consistency = 1.0
    config.method.live_memory_prob = 0.0
    config.method.reference_window = None
    config.model.use_times = False
    config.model.repeat_head = False
    config.method.exact_entries = 0
    return config
