"""The configuration: nested frozen dataclasses that validate themselves.

As nested dicts, and what identifies a run: `config_dict.py`.
"""

from __future__ import annotations

import dataclasses

from rec2pm_jax.errors import UserError, nearest


def _require(ok: bool, field: str, rule: str, value: object) -> None:
    if not ok:
        raise UserError(f"config.{field} must be {rule}, got {value!r}.")


def _one_of(value: str, options: tuple[str, ...], field: str) -> None:
    if value not in options:
        raise UserError(
            f"config.{field}={value!r} is unknown; choose one of {', '.join(options)}."
            f"{nearest(str(value), options)}"
        )


PROTOCOLS = (
    "leave_one_out",
    "last_10",
    "genrec",
    "temporal",
    "holdout_leave_one_out",
    "holdout_last_10",
)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How histories are cut. See `methods/segments.py` for the arithmetic."""

    segment: int = 25  # S, events per segment
    segments: int = 16  # K, segments per training window
    # R >= 1, newest events that always stay raw; larger ones gain nothing (results/since_archive.md)
    recent: int = 1
    protocol: str = "last_10"  # one of PROTOCOLS, see data/splits.py
    # temporal: targets are events from split_time on, a date (UTC) or seconds since 1970
    split_time: str = dataclasses.field(default="", metadata={"neutral": ""})
    validation_days: float = dataclasses.field(default=1.0, metadata={"neutral": 1.0})
    # holdout_..: share of users of whom nothing is trained on
    holdout_fraction: float = dataclasses.field(default=0.1, metadata={"neutral": 0.1})

    def __post_init__(self):
        _require(self.segment >= 1, "data.segment", ">= 1", self.segment)
        _require(self.segments >= 1, "data.segments", ">= 1", self.segments)
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
        """Most raw events a read sees: S + R - 1."""
        return self.segment + self.recent - 1

    @property
    def window(self) -> int:
        """Events of a training window, and of `full`: L = K * S + R - 1."""
        return self.segments * self.segment + self.recent - 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The backbone. Sizes are the paper's names; 0 means "derive" where a comment says so."""

    backbone: str = "sasrec"  # sasrec | hstu
    layers: int = 2
    heads: int = 2
    dim: int = 64  # D
    head_dim: int = 0  # 0: dim // heads (HSTU: dqk = dv)
    ffn_dim: int = 0  # SASRec only; 0: dim
    activation: str = "relu"  # SASRec only: relu | gelu
    dropout: float = 0.1
    relative_bias: str = "none"  # HSTU only: none | position | position_time
    absolute_positions: bool = True
    identity_init: bool = True  # SASRec: attention and memory start as copying, see nn/sasrec.py
    event_types: int = 0  # rows of the event-type embedding; 0: event types are not used
    scan_layers: bool = True
    dtype: str = "float32"  # compute dtype: float32 | bfloat16
    # The item table: whole on every device, or its rows spread over all of them (nn/item_rows.py).
    table: str = dataclasses.field(default="whole", metadata={"neutral": "whole"})

    def __post_init__(self):
        _one_of(self.backbone, ("sasrec", "hstu"), "model.backbone")
        _one_of(self.activation, ("relu", "gelu"), "model.activation")
        _one_of(self.relative_bias, ("none", "position", "position_time"), "model.relative_bias")
        _one_of(self.dtype, ("float32", "bfloat16"), "model.dtype")
        _one_of(self.table, ("whole", "sharded"), "model.table")
        for field in ("layers", "heads", "dim"):
            value = getattr(self, field)
            _require(value >= 1, f"model.{field}", ">= 1", value)
        _require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        _require(self.event_types >= 0, "model.event_types", ">= 0", self.event_types)
        if not self.head_dim:
            _require(
                self.dim % self.heads == 0,
                "model.heads",
                f"a divisor of model.dim={self.dim} (or set model.head_dim)",
                self.heads,
            )
        if self.relative_bias != "none" and self.backbone != "hstu":
            raise UserError(
                "config.model.relative_bias is for model.backbone=hstu; sasrec has none."
            )

    @property
    def uses_identity_init(self) -> bool:
        """`identity_init` where it applies: HSTU's gated values have no copying start."""
        return self.identity_init and self.backbone == "sasrec"

    @property
    def key_dim(self) -> int:
        return self.head_dim or self.dim // self.heads


METHOD_NAMES = ("rec2pm", "tok_serial", "kv_mask", "full", "recent")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """The memory and the losses that train it. Defaults are the recipe of BUILD_NOTES.md.

    Fields of one method are ignored by the others, so that methods can be compared under one preset.
    """

    name: str = "rec2pm"  # one of METHOD_NAMES
    memory: str = "overwrite"  # overwrite | append (methods with a memory)
    slots: int = 4  # C
    max_groups: int = 16  # append keeps the newest max_groups groups
    running_mean: bool = True  # rec2pm, tok_serial: see MemoryTokens.leave; False: m_k = LN(o_k)
    horizons: bool = True  # rec2pm, tok_serial: slots look back differently far, see segments.py
    # rec2pm, tok_serial: what memory expects is added to a reader's output, see MemoryTokens.remind
    recall: bool = dataclasses.field(default=True, metadata={"neutral": False})
    # rec2pm, tok_serial: parts of D numbers of an item's vector, of which the backbone sees the first
    # and slot p also keeps the running mean of part p, see sketch.py; 0: no sketch. `full` and `recent`
    # sum over what they read.
    sketch: int = dataclasses.field(default=0, metadata={"neutral": 0})
    # rec2pm
    consistency: float = 1.0  # lambda of L_con
    consistency_ramp: int = 0  # steps over which lambda rises linearly from 0
    consistency_reduction: str = "mean"  # mean | sum over [C, D]
    # Stop gradients into the target of L_con. Where readers of both memories keep the reference from
    # turning into a constant (`live` between 0 and 1), both sides should move: one reader, one code.
    stop_target: bool = False
    # Weight of the next-item loss on the reference pass. Where `live` < 1, readers of reference
    # memories train that pass; this is for a recipe in which nobody reads them.
    reference_ar: float = 0.0
    bag: float = 0.0  # weight of "m_h^ref predicts the items of segment h + 1"
    hide: float = 0.0  # share of (user, segment) whose older working memory is hidden in training
    # Segments an item of the reference pass sees, its own included; 0: all, as in the paper. With 1
    # an item is what it is to an update, and the cost of items is linear in the length of the
    # history; queries see every item anyway.
    reference_window: int = dataclasses.field(default=1, metadata={"neutral": 0})
    live: float = 0.5  # share of (user, segment) read with the live memory instead of the reference
    # tok_serial
    truncate: int = 0  # gradients stop at the memory entering segments T, 2T, ..; 0: nowhere
    remat: bool = False  # recompute a segment in the backward pass instead of storing it

    def __post_init__(self):
        _one_of(self.name, METHOD_NAMES, "method.name")
        _one_of(self.memory, ("overwrite", "append"), "method.memory")
        _one_of(self.consistency_reduction, ("mean", "sum"), "method.consistency_reduction")
        for field in ("slots", "max_groups"):
            value = getattr(self, field)
            _require(value >= 1, f"method.{field}", ">= 1", value)
        for field in (
            "consistency",
            "consistency_ramp",
            "reference_ar",
            "bag",
            "reference_window",
            "sketch",
        ):
            value = getattr(self, field)
            _require(value >= 0, f"method.{field}", ">= 0", value)
        for field in ("hide", "live"):
            value = getattr(self, field)
            _require(0 <= value <= 1, f"method.{field}", "in [0, 1]", value)
        # At 1 every memory is cut off before it is read, and nothing would train the queries.
        allowed = self.truncate == 0 or self.truncate >= 2
        _require(allowed, "method.truncate", "0 (never) or >= 2", self.truncate)


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The catalogue loss. Item embeddings are tied to the input table."""

    kind: str = "full_softmax"  # full_softmax | sampled_softmax
    negatives: int = 128
    sharing: str = "shared"  # shared | per_position: one set of negatives per step or per token
    in_batch: bool = False  # negatives from the (micro-)batch's targets, not the catalogue
    temperature: float = 0.05
    normalize: bool = True  # L2-normalise outputs and items (cosine logits)
    log_q: bool = False  # subtract log of the sampling probability

    def __post_init__(self):
        _one_of(self.kind, ("full_softmax", "sampled_softmax"), "loss.kind")
        _one_of(self.sharing, ("shared", "per_position"), "loss.sharing")
        _require(self.negatives >= 1, "loss.negatives", ">= 1", self.negatives)
        _require(self.temperature > 0, "loss.temperature", "> 0", self.temperature)


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    learning_rate: float = 5e-3
    warmup_steps: int = 100
    schedule: str = "cosine"  # constant | cosine (to 1 % at train.steps)
    decay_steps: int = 0  # length of the cosine; 0: train.steps
    weight_decay: float = 0.01
    b1: float = 0.9
    b2: float = 0.98
    clip_norm: float = 1.0  # 0: no clipping
    # The item table's own: adamw as the rest, or rowwise_adagrad, which changes looked-up rows only
    table: str = dataclasses.field(default="adamw", metadata={"neutral": "adamw"})
    # peak rate of rowwise_adagrad, same schedule; 0: learning_rate
    table_learning_rate: float = dataclasses.field(default=0.0, metadata={"neutral": 0.0})

    def __post_init__(self):
        _one_of(self.schedule, ("constant", "cosine"), "optim.schedule")
        _one_of(self.table, ("adamw", "rowwise_adagrad"), "optim.table")
        _require(self.learning_rate > 0, "optim.learning_rate", "> 0", self.learning_rate)
        for field in (
            "warmup_steps",
            "weight_decay",
            "clip_norm",
            "decay_steps",
            "table_learning_rate",
        ):
            value = getattr(self, field)
            _require(value >= 0, f"optim.{field}", ">= 0", value)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    steps: int = 2000
    batch_size: int = 32  # users per step, over all processes
    seed: int = 0
    log_every: int = 20
    eval_every: int = 500
    eval_users: int = 0  # users per validation during training; 0: all
    patience: int = 10  # evaluations without a better validation NDCG@10 before stopping
    checkpoint_every: int = 500
    keep_checkpoints: int = 2  # newest ones, beside the best
    partition: str = "jit"  # jit | pmap

    def __post_init__(self):
        _one_of(self.partition, ("jit", "pmap"), "train.partition")
        for field in (
            "steps",
            "batch_size",
            "log_every",
            "eval_every",
            "patience",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            value = getattr(self, field)
            _require(value >= 1, f"train.{field}", ">= 1", value)
        _require(self.eval_users >= 0, "train.eval_users", ">= 0", self.eval_users)


@dataclasses.dataclass(frozen=True)
class ComputeConfig:
    """How things are computed, not what: results agree to rounding, and `config_hash` ignores it."""

    attention: str = "auto"  # auto | dense | blockwise | pallas | cudnn, see nn/attend.py
    platform: str = "auto"  # auto | cpu | gpu | tpu; auto: where it runs (nn/platform.py)
    accumulate: int = (
        1  # micro-batches per step: less memory, and on a CPU arrays that stay in the cache
    )
    recompute: str = "auto"  # auto | layer | none: what backward passes make again, nn/recompute.py
    loss_chunk_bytes: int = 0  # of a chunk of logits; 0: what suits the platform, see nn/losses.py
    # Devices that share batch and table with train.partition=jit; 0: all of the job
    devices: int = 1
    bucket_rows: int = 0  # sharded table: rows one device may ask of another in a step; 0: derived

    def __post_init__(self):
        names = ("auto", "dense", "blockwise", "pallas", "cudnn")
        _one_of(self.attention, names, "compute.attention")
        _one_of(self.platform, ("auto", "cpu", "gpu", "tpu"), "compute.platform")
        _one_of(self.recompute, ("auto", "layer", "none"), "compute.recompute")
        _require(self.accumulate >= 1, "compute.accumulate", ">= 1", self.accumulate)
        for field in ("loss_chunk_bytes", "devices", "bucket_rows"):
            value = getattr(self, field)
            _require(value >= 0, f"compute.{field}", ">= 0", value)


@dataclasses.dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    compute: ComputeConfig = ComputeConfig()

    def __post_init__(self):
        if self.train.batch_size % self.compute.accumulate:
            raise UserError(
                f"config.train.batch_size={self.train.batch_size} must be a multiple of "
                f"config.compute.accumulate={self.compute.accumulate}."
            )
        if self.model.table == "sharded":
            self._check_sharded()
        if self.method.sketch:
            self._check_sketch()
        if self.method.name == "kv_mask" and self.model.layers < 2:
            raise UserError(
                "config.method.name=kv_mask needs config.model.layers >= 2: keys and values of the "
                "first layer are made before the query tokens see any event."
            )

    @property
    def item_dim(self) -> int:
        """W, numbers of an item's vector: what the backbone sees, and further parts of a sketch."""
        parts = 1 if self.method.name == "kv_mask" else max(1, self.method.sketch)
        return self.model.dim * parts

    def _check_sketch(self) -> None:
        method = self.method
        if method.name not in ("rec2pm", "tok_serial"):
            return
        if method.sketch > method.slots:
            raise UserError(
                f"config.method.sketch={method.sketch} parts need as many slots; "
                f"config.method.slots={method.slots}."
            )
        if not method.recall:
            raise UserError(
                f"config.method.sketch={method.sketch} needs config.method.recall=true: nothing else "
                "reads the further parts of an item's vector."
            )
        if not method.running_mean:
            raise UserError(
                f"config.method.sketch={method.sketch} needs config.method.running_mean=true: an "
                "update sums its own segment only."
            )

    def _check_sharded(self) -> None:
        """A step over a sharded table sees the rows of its batch and of its negatives only."""
        needed = {
            "loss.kind": "sampled_softmax",
            "loss.sharing": "shared",
            "loss.in_batch": False,
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
