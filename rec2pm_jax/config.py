"""The configuration: nested frozen dataclasses that validate themselves.

A field whose default is `None` is derived from others, as its entry says. `config_dict.py` converts a
configuration to and from plain values. `methods/registry.py` computes the hash that identifies a run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from rec2pm_jax.errors import UserError, nearest

PROTOCOLS = (
    "leave_one_out",
    "last_10",
    "genrec",
    "temporal",
    "holdout_leave_one_out",
    "holdout_last_10",
)


def _require(ok: bool, field: str, rule: str, value: object) -> None:
    if not ok:
        raise UserError(f"config.{field} must be {rule}, got {value!r}.")


def _require_at_least(least: float, section: str, config: object, fields: Iterable[str]) -> None:
    """Check that fields which are not None are at least `least`."""
    for field in fields:
        value = getattr(config, field)
        _require(value is None or value >= least, f"{section}.{field}", f">= {least}", value)


def _one_of(value: str, options: tuple[str, ...], field: str) -> None:
    if value not in options:
        raise UserError(
            f"config.{field}={value!r} is unknown; choose one of {', '.join(options)}."
            f"{nearest(str(value), options)}"
        )


LARGEST_INT = 2**31 - 1  # devices count in 32 bits


def _check_representable(section: str, config: object) -> None:
    """Check that numbers are finite and fit the arithmetic of devices."""
    for field, value in vars(config).items():
        if isinstance(value, float):
            _require(math.isfinite(value), f"{section}.{field}", "finite", value)
            _require(abs(value) < 1e30, f"{section}.{field}", "below 1e30", value)
        elif isinstance(value, int) and field != "seed":
            _require(value <= LARGEST_INT, f"{section}.{field}", "below 2**31", value)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How histories are cut and split. `methods/segments.py` holds the arithmetic.

    Attributes:
      segment: S, events per segment.
      segments: K, segments per training window.
      recent: R >= 1, newest events that always stay raw. Larger values read more raw events.
      protocol: how targets are split off, one of `PROTOCOLS`; see `data/splits.py`.
      split_time: first target time under `temporal`: a date (UTC) or seconds since 1970.
      validation_days: days before `split_time` that are validation targets under `temporal`.
      holdout_fraction: share of users without training events under `holdout_..`.

    Rarely changed: recent, split_time, validation_days, holdout_fraction.
    """

    segment: int = 25
    segments: int = 16
    recent: int = 1
    protocol: str = "last_10"
    split_time: str | None = None
    validation_days: float = 1.0
    holdout_fraction: float = 0.1

    def __post_init__(self) -> None:
        _check_representable("data", self)
        _require_at_least(1, "data", self, ("segment", "segments"))
        _require(
            1 <= self.recent <= self.segment,
            "data.recent",
            "between 1 and data.segment",
            self.recent,
        )
        _one_of(self.protocol, PROTOCOLS, "data.protocol")
        if self.protocol == "temporal" and not self.split_time:
            raise UserError(
                "config.data.protocol=temporal needs config.data.split_time, e.g. 2023-10-01."
            )
        _require(self.validation_days > 0, "data.validation_days", "> 0", self.validation_days)
        share = self.holdout_fraction
        _require(0 < share < 1, "data.holdout_fraction", "between 0 and 1", share)

    @property
    def read_length(self) -> int:
        """Most raw events that a read of memory and recent events sees: S + R - 1."""
        return self.segment + self.recent - 1

    @property
    def window(self) -> int:
        """Events of a training window, and of `full`: L = K * S + R - 1."""
        return self.segments * self.segment + self.recent - 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone and the item table.

    Attributes:
      backbone: a name registered in `nn/registry.py`: sasrec or hstu.
      layers: layers of the backbone.
      heads: attention heads.
      dim: D, width of tokens and of an item's vector.
      head_dim: features of a query, key or value per head. None: dim / heads.
      dropout: rate of dropout, rounded to a multiple of 1/256.
      ffn_dim: sasrec: hidden width of the feed-forward part. None: dim.
      identity_init: sasrec: values and memory start as copies of their input; see
        `nn/layers/sasrec.py`.
      relative_bias: hstu: none, position, or position_time (needs a dataset with times).
      score_norm: hstu: N, the constant that divides attention scores. None: the training window.
      event_types: event types that are embedded: all that the dataset has. 0: types are not used.
      dtype: compute dtype, float32 or bfloat16. Parameters are float32.
      table: whole (each device holds the item table) or sharded (each device holds some rows).

    Rarely changed: head_dim, ffn_dim, identity_init, score_norm, dtype, table.
    """

    backbone: str = "sasrec"
    layers: int = 2
    heads: int = 2
    dim: int = 64
    head_dim: int | None = None
    dropout: float = 0.1
    ffn_dim: int | None = None
    identity_init: bool = True
    relative_bias: str = "none"
    score_norm: float | None = None
    event_types: int = 0
    dtype: str = "float32"
    table: str = "whole"

    def __post_init__(self) -> None:
        _check_representable("model", self)
        _one_of(self.relative_bias, ("none", "position", "position_time"), "model.relative_bias")
        _one_of(self.dtype, ("float32", "bfloat16"), "model.dtype")
        _one_of(self.table, ("whole", "sharded"), "model.table")
        _require_at_least(1, "model", self, ("layers", "heads", "dim", "head_dim", "ffn_dim"))
        _require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        _require_at_least(0, "model", self, ("event_types",))
        if self.score_norm is not None:
            _require(self.score_norm > 0, "model.score_norm", "> 0", self.score_norm)
        if self.head_dim is None:
            rule = f"a divisor of model.dim={self.dim} (or set model.head_dim)"
            _require(self.dim % self.heads == 0, "model.heads", rule, self.heads)

    @property
    def key_dim(self) -> int:
        """Features of a query, key or value per head."""
        return self.head_dim or self.dim // self.heads


# Fields of `ModelConfig` that only some backbones read; a backbone names its own when it registers.
BACKBONE_FIELDS = ("ffn_dim", "identity_init", "relative_bias", "score_norm")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """The memory, and the losses that train it.

    A method reads some of these fields and ignores the others, so one preset serves all methods. A
    method names the fields it reads when it registers (`methods/registry.py`).

    Attributes:
      name: a registered method: rec2pm, tok_serial, kv_mask, persrec (kv_mask as in PerSRec's code),
        full or recent.
      memory: overwrite (one group of C slots) or append (the newest `max_groups` groups).
      slots: C, memory tokens per group.
      max_groups: G, groups that append keeps.
      running_mean: an update averages with the memory before it, see `MemoryTokens.from_query_outputs`.
      recall: a linear map of the memory is added to a reader's output, see `MemoryTokens.add_recall`.
      sketch: P, parts of an item's vector that memory slots sum, see `methods/sketch.py`. 0: none.
      consistency: rec2pm: lambda, the weight of L_con. The paper's is 1.
      reference_window: rec2pm: segments that an item of the reference pass sees, from its segment back.
        None: all earlier ones, as in the paper.
      live_memory_prob: rec2pm: share of (user, segment) pairs that read the memory which the
        recurrence makes, instead of the reference memory. The paper's is 0.

    Rarely changed: max_groups, running_mean, recall, reference_window, live_memory_prob.
    """

    name: str = "rec2pm"
    memory: str = "overwrite"
    slots: int = 4
    max_groups: int = 16
    running_mean: bool = True
    recall: bool = True
    sketch: int = 0
    consistency: float = 0.1
    reference_window: int | None = 1
    live_memory_prob: float = 0.5

    def __post_init__(self) -> None:
        _check_representable("method", self)
        _one_of(self.memory, ("overwrite", "append"), "method.memory")
        _require_at_least(1, "method", self, ("slots", "max_groups", "reference_window"))
        _require_at_least(0, "method", self, ("consistency", "sketch"))
        share = self.live_memory_prob
        _require(0 <= share <= 1, "method.live_memory_prob", "in [0, 1]", share)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The next-item loss over the catalogue. Logits are cosines of outputs and item vectors.

    Attributes:
      negatives: uniform negatives of a sampled softmax. None: the full softmax over all items.
      sharing: shared (one set of negatives per step) or per_position (a set for each position).
      temperature: divides the cosines.
    """

    negatives: int | None = None
    sharing: str = "shared"
    temperature: float = 0.05

    def __post_init__(self) -> None:
        _check_representable("loss", self)
        _one_of(self.sharing, ("shared", "per_position"), "loss.sharing")
        _require_at_least(1, "loss", self, ("negatives",))
        _require(self.temperature > 0, "loss.temperature", "> 0", self.temperature)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """AdamW with betas (0.9, 0.98), and the optimiser of the item table.

    Attributes:
      learning_rate: peak learning rate.
      warmup_steps: steps of linear warm-up from 0.
      schedule: constant, or cosine (to 1 % of the peak at `train.steps`).
      weight_decay: decoupled weight decay.
      clip_norm: largest global gradient norm. None: gradients are not clipped.
      table: adamw (as all parameters), or rowwise_adagrad, which changes looked-up rows only.
      table_learning_rate: peak learning rate of rowwise_adagrad. None: `learning_rate`.

    Rarely changed: warmup_steps, clip_norm, table, table_learning_rate.
    """

    learning_rate: float = 5e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    table: str = "adamw"
    table_learning_rate: float | None = None

    def __post_init__(self) -> None:
        _check_representable("optim", self)
        _one_of(self.schedule, ("constant", "cosine"), "optim.schedule")
        _one_of(self.table, ("adamw", "rowwise_adagrad"), "optim.table")
        _require_at_least(0, "optim", self, ("warmup_steps", "weight_decay"))
        for field in ("learning_rate", "clip_norm", "table_learning_rate"):
            value = getattr(self, field)
            _require(value is None or value > 0, f"optim.{field}", "> 0", value)


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
        _check_representable("train", self)
        _one_of(self.partition, ("jit", "pmap"), "train.partition")
        counts = ("steps", "batch_size", "log_every", "eval_every", "eval_users", "patience")
        _require_at_least(1, "train", self, (*counts, "checkpoint_every"))
        _require(0 <= self.seed < 2**32, "train.seed", "in [0, 2**32)", self.seed)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How results are computed, not what they are: they agree up to rounding.

    Attributes:
      attention: auto, dense, blockwise, pallas or cudnn; see `nn/attention/dispatch.py`.
      platform: platform that programs are compiled for: cpu, gpu or tpu. auto: the one in use.
      accumulate: micro-batches per step. More of them take less memory, and stay in a CPU's cache.
      recompute: what a backward pass recomputes: auto, layer or none; see `nn/recompute.py`.
      devices: devices that share a step. 0: all devices of the job.
      bucket_rows: rows of a sharded table that a device may request from another per step. None:
        derived from the batch.

    Rarely changed: platform, recompute, bucket_rows.
    """

    attention: str = "auto"
    platform: str = "auto"
    accumulate: int = 1
    recompute: str = "auto"
    devices: int = 1
    bucket_rows: int | None = None

    def __post_init__(self) -> None:
        _check_representable("compute", self)
        names = ("auto", "dense", "blockwise", "pallas", "cudnn")
        _one_of(self.attention, names, "compute.attention")
        _one_of(self.platform, ("auto", "cpu", "gpu", "tpu"), "compute.platform")
        _one_of(self.recompute, ("auto", "layer", "none"), "compute.recompute")
        _require_at_least(1, "compute", self, ("accumulate", "bucket_rows"))
        _require_at_least(0, "compute", self, ("devices",))


@dataclasses.dataclass(frozen=True)
class Config:
    """The configuration of a run.

    >>> config = Config(method=MethodConfig(name="full"), train=TrainConfig(steps=100))
    >>> config.data.window
    400

    Raises:
      UserError: a value is out of range, or two fields contradict each other.
    """

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self) -> None:
        for field in ("window", "read_length"):
            value = getattr(self.data, field)
            _require(
                value <= LARGEST_INT, f"data.{field} (of segment, segments)", "below 2**31", value
            )
        if self.train.batch_size % self.compute.accumulate:
            raise UserError(
                f"config.train.batch_size={self.train.batch_size} must be a multiple of "
                f"config.compute.accumulate={self.compute.accumulate}."
            )
        if self.model.table == "sharded":
            self._check_sharded()

    def _check_sharded(self) -> None:
        """Check that a step needs no more rows of the table than its batch and its negatives."""
        if self.loss.negatives is None:
            raise UserError(
                "config.model.table=sharded needs config.loss.negatives, the number of sampled "
                "negatives: no device sees the whole catalogue."
            )
        needed = {
            "loss.sharing": "shared",
            "optim.table": "rowwise_adagrad",
            "train.partition": "jit",
        }
        for name, value in needed.items():
            section, field = name.split(".")
            got = getattr(getattr(self, section), field)
            if got != value:
                raise UserError(
                    f"config.model.table=sharded needs config.{name}={value}, got {got!r}: no device "
                    "sees the whole catalogue."
                )
