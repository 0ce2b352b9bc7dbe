"""The paper's public setting: MerRec, HSTU with 16 layers and 8 heads, D 64, K * S = 1000, batch 8.

MerRec (CC BY-NC 4.0) is Mercari's: DIR holds its parquet files (`data/sources/merrec.py`).

Command:
    python -m launch.prepare --source=merrec --input=DIR --min_user_events=1003 \\
        --output_dir=data/merrec
    for seed in 0 1 2 3 4; do for memory in overwrite append; do
    for method in full recent rec2pm tok_serial kv_mask; do
      case $memory.$method in append.full|append.recent) continue;; esac    # no memory
      run=runs/merrec/$method.$memory.$seed
      python -m launch.train --config=paper_merrec_hstu --data=data/merrec \\
          --workdir=$run --config.method.name=$method --config.method.memory=$memory \\
          --config.train.seed=$seed
      python -m launch.evaluate --workdir=$run --max_segments=5 --json=$run.json
    done; done; done
Hardware: one accelerator with 16 GiB; batch 8 of 1,000 events. On a CPU only to see that it runs.
Time: not measured: the data are not public to us.
Metrics: the paper's Table 1, rec2pm_o: HR@1 .150, HR@10 .442, HR@50 .612, NDCG@10 .287, NDCG@50 .325.

The paper keeps the last 1,003 events of every user; `--max_segments=5` gives memory the same horizon at
evaluation. Training windows are cut from the whole history. The paper leaves open, and PerSRec, whose
protocol it follows, has: no relative bias, learned positions, dropout .5, one uniform negative per
position pooled over the batch (8 * 1000), temperature .05. The default recipe departs from the paper
(docs/methods.md); `paper_plain.py` shows how to switch that off.

N, which divides attention scores, is the window of 1,000 events for all methods. PerSRec's code divides
by the length of its pass: `--config.method.name=persrec --config.model.score_norm=1016` is KV-Mask in
its form, with 4 tokens after each of the first 4 segments. Padding is on
the right, unlike in its data sets.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 200
    config.data.segments = 5
    config.data.protocol = "leave_one_out"
    config.model.backbone = "hstu"
    config.model.layers = 16
    config.model.heads = 8
    config.model.dim = 64
    config.model.dropout = 0.5
    config.method.slots = 4
    config.loss.negatives = 8000
    config.loss.sharing = "shared"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.optim.weight_decay = 0.1
    config.train.batch_size = 8
    config.train.steps = 200_000
    config.train.eval_every = 5000
    config.train.checkpoint_every = 5000
    config.train.patience = 10
    config.model.use_times = False
    config.model.repeat_head = False
    config.method.exact_entries = 0
    return config
