"""generative-recommenders' public ML-1M setting, SASRec: 2 layers, 1 head, D 50, L 200.

Command:
    python -m launch.prepare --source=movielens --input=ml-1m/ratings.dat --min_item_count=5 \\
        --output_dir=data/ml1m
    python -m launch.reproduce --suite=genrec --data=data --workdir=runs/reproduce
Hardware: one CPU core per run.
Time: about 45 minutes.
Metrics: published, HR@10 .2853 and NDCG@10 .1603; ours in results/genrec.md.

As theirs: no validation split, the best of all evaluated steps on the test targets, items of the last
200 events left out of the ranking. AdamW (.9, .98) at a constant 1e-3, no weight decay, no clipping;
128 uniform negatives per position, cosine / .05. On equal weights the outputs agree (tests/parity).

Unlike theirs:
- Windows of 201 events are cut anywhere in a history, not only at its end.
- An epoch of 6,040 users in batches of 128 counts as 47 steps.
- Evaluation takes place every five epochs.
- Projections of queries, keys and values start with a standard deviation of .142 (theirs: .101, as
  Xavier's for the stacked matrix). Feed-forward biases start at 0 (theirs: uniform within .142).
- Rates of dropout are rounded to 1/256.
- The table of positions has 200 rows (theirs: 211, of which 200 are used), and their padding is on the
  right, as here.
"""

from __future__ import annotations

import ml_collections

from launch.configs.base import base_config

STEPS_PER_EPOCH = 47


def get_config() -> ml_collections.ConfigDict:
    config = base_config()
    config.data.segment = 50
    config.data.segments = 4
    config.data.protocol = "genrec"
    config.model.layers = 2
    config.model.heads = 1
    config.model.dim = 50
    config.model.dropout = 0.2
    config.model.identity_init = False
    config.method.name = "full"
    config.loss.negatives = 128
    config.loss.sharing = "per_position"
    config.optim.learning_rate = 1e-3
    config.optim.warmup_steps = 0
    config.optim.schedule = "constant"
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.compute.accumulate = 16  # on a CPU, so that arrays stay in the cache
    config.train.batch_size = 128
    config.train.steps = 101 * STEPS_PER_EPOCH
    config.train.eval_every = 5 * STEPS_PER_EPOCH
    config.train.checkpoint_every = 5 * STEPS_PER_EPOCH
    config.train.patience = 101
    config.model.use_times = False
    config.model.repeat_head = False
    config.method.exact_entries = 0
    return config
