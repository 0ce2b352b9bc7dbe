"""The paper's plain recipe on Complete Journey: L = L_AR + L_con and M_k = m_k, nothing else.

Gradients flow into both sides of L_con, the reference pass has no loss of its own, no auxiliary head
helps, and kernels start at random: what BUILD_NOTES.md measures the default recipe against.

Command:
    python -m launch.compare --config=launch/configs/paper_plain.py --data=data/types \\
        --workdir=runs/paper_plain --methods=rec2pm
Hardware, time: as development.py.
Metrics: see BUILD_NOTES.md.
"""

from __future__ import annotations

import ml_collections

from launch.configs import development


def get_config() -> ml_collections.ConfigDict:
    config = development.get_config()
    config.model.identity_init = False
    config.method.running_mean = False
    config.method.horizons = False
    config.method.stop_target = False
    config.method.reference_ar = 0.0
    config.method.bag = 0.0
    config.method.recall = False
    config.method.consistency = 1.0
    config.method.consistency_ramp = 0
    config.method.hide = 0.0
    config.method.live = 0.0
    config.method.reference_window = 0
    return config
