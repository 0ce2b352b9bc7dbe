"""The sections that say how a model is trained: loss, optim, train and compute."""

from __future__ import annotations

import dataclasses

from rec2pm_jax.config.checks import (
    require,
    require_at_least,
    require_one_of,
    require_representable,
)
from rec2pm_jax.config.target_types import parse_target_types


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The next-item loss over the catalogue. Logits are cosines of outputs and item vectors.

    Attributes:
      negatives: uniform negatives of a sampled softmax. None: the full softmax over all items.
      sharing: shared (one set of negatives per step) or per_position (a set for each position).
      temperature: divides the cosines.
      target_types: event types that are predicted, such as purchase, or purchase,cart=0.3 with weights
        in the loss. Events of all types are read. Validation and evaluation have the same types of
        targets. None: every event is a target.
    """

    negatives: int | None = None
    sharing: str = "shared"
    temperature: float = 0.05
    target_types: str | None = None

    def __post_init__(self) -> None:
        require_representable("loss", self)
        require_one_of(self.sharing, ("shared", "per_position"), "loss.sharing")
        require_at_least(1, "loss", self, ("negatives",))
        require(self.temperature > 0, "loss.temperature", "> 0", self.temperature)
        if self.target_types is not None:
            parse_target_types(self.target_types)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with betas (0.9, 0.98), and the optimiser of the item table.

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: steps of linear warm-up from 0.
      schedule: constant, or cosine (to 1 % of the peak at `train.steps`).
      weight_decay: decoupled weight decay.
      clip_norm: largest global gradient norm. None: gradients are not clipped.
      table_learning_rate: peak learning rate of the item table, which row-wise Adagrad then trains: it
        changes looked-up rows only. None: AdamW trains the table as all parameters.

    Rarely changed: warmup_steps, clip_norm, table_learning_rate.
    """

    learning_rate: float = 5e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    table_learning_rate: float | None = None

    def __post_init__(self) -> None:
        require_representable("optim", self)
        require_one_of(self.schedule, ("constant", "cosine"), "optim.schedule")
        require_at_least(0, "optim", self, ("warmup_steps", "weight_decay"))
        for field in ("learning_rate", "clip_norm", "table_learning_rate"):
            value = getattr(self, field)
            require(value is None or value > 0, f"optim.{field}", "> 0", value)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Budget, validation and checkpoints of a training run.

    Attributes:
      steps: optimiser steps.
      batch_size: users per step, over all processes.
      seed: of initial parameters, data order, dropout and sampled negatives.
      log_every: steps between rows of `train.jsonl`.
      eval_every: steps between validations.
      eval_users: users per validation. None: all.
      patience: validations without a better NDCG@10 before training stops.
      checkpoint_every: steps between checkpoints.
      partition: jit (one or several devices, one or several hosts) or pmap (devices of one host).

    Rarely changed: log_every, patience, partition.
    """

    steps: int = 2000
    batch_size: int = 32
    seed: int = 0
    log_every: int = 20
    eval_every: int = 500
    eval_users: int | None = None
    patience: int = 10
    checkpoint_every: int = 500
    partition: str = "jit"

    def __post_init__(self) -> None:
        require_representable("train", self)
        require_one_of(self.partition, ("jit", "pmap"), "train.partition")
        counts = ("steps", "batch_size", "log_every", "eval_every", "eval_users", "patience")
        require_at_least(1, "train", self, (*counts, "checkpoint_every"))
        require(0 <= self.seed < 2**32, "train.seed", "in [0, 2**32)", self.seed)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How results are computed, not what they are: they agree up to rounding.

    Attributes:
      attention: auto, dense, blockwise, pallas or cudnn; see `nn/attention/dispatch.py`.
      platform: platform that programs are compiled for: cpu, gpu or tpu. auto: the one in use.
      accumulate: micro-batches per step. More of them take less memory, and stay in a CPU's cache.
      devices: devices that share a step. 0: all devices of the job.
      bucket_rows: rows of a sharded table that a device may request from another per step. None:
        derived from the batch.

    Rarely changed: platform, bucket_rows.
    """

    attention: str = "auto"
    platform: str = "auto"
    accumulate: int = 1
    devices: int = 1
    bucket_rows: int | None = None

    def __post_init__(self) -> None:
        require_representable("compute", self)
        names = ("auto", "dense", "blockwise", "pallas", "cudnn")
        require_one_of(self.attention, names, "compute.attention")
        require_one_of(self.platform, ("auto", "cpu", "gpu", "tpu"), "compute.platform")
        require_at_least(1, "compute", self, ("accumulate", "bucket_rows"))
        require_at_least(0, "compute", self, ("devices",))
