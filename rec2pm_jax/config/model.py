"""The sections that say what is computed: data, model and method."""

from __future__ import annotations

import dataclasses

from rec2pm_jax.config.checks import (
    require,
    require_at_least,
    require_one_of,
    require_representable,
)
from rec2pm_jax.errors import UserError

PROTOCOLS = (
    "leave_one_out",
    "last_10",
    "last_basket",
    "genrec",
    "temporal",
    "temporal_set",
    "holdout_leave_one_out",
    "holdout_last_10",
)
TIMED_PROTOCOLS = ("temporal", "temporal_set")  # need `data.split_time`


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How histories are cut and split. `methods/segments.py` holds the arithmetic.

    Attributes:
      segment: S, events per segment.
      segments: K, segments per training window.
      recent: R >= 1, newest events that always stay raw. Larger values read more raw events.
      protocol: how targets are split off, one of `PROTOCOLS`; see `data/splits.py`.
      split_time: first target time under `temporal` and `temporal_set`: a date (UTC) or seconds since
        1970.
      validation_days: days before `split_time` that are validation targets under these two.

    Rarely changed: recent, split_time, validation_days.
    """

    segment: int = 25
    segments: int = 16
    recent: int = 1
    protocol: str = "last_10"
    split_time: str | None = None
    validation_days: float = 1.0

    def __post_init__(self) -> None:
        require_representable("data", self)
        require_at_least(1, "data", self, ("segment", "segments"))
        require(
            1 <= self.recent <= self.segment,
            "data.recent",
            "between 1 and data.segment",
            self.recent,
        )
        require_one_of(self.protocol, PROTOCOLS, "data.protocol")
        if self.protocol in TIMED_PROTOCOLS and not self.split_time:
            raise UserError(
                f"config.data.protocol={self.protocol} needs config.data.split_time, e.g. 2023-10-01."
            )
        require(self.validation_days > 0, "data.validation_days", "> 0", self.validation_days)

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
      backbone: a name registered in `nn/registry.py`: sasrec, hstu, or lru (for methods full and
        recent; linear_recurrence always has it).
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
      use_times: whether the model reads the time from each event to its query. None: where the dataset
        has real times.
      repeat_head: the user's raw items get an addend to their score, see `methods/own_items.py`.
      item_features: rows of the table that embeds what items are: words of titles, categories and
        attributes. An item's vector is that of its id plus that of its content, see
        `nn/item_features.py`. 0: ids only.
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
    use_times: bool | None = None
    repeat_head: bool = True
    item_features: int = 0
    event_types: int = 0
    dtype: str = "float32"
    table: str = "whole"

    def __post_init__(self) -> None:
        require_representable("model", self)
        require_one_of(
            self.relative_bias, ("none", "position", "position_time"), "model.relative_bias"
        )
        require_one_of(self.dtype, ("float32", "bfloat16"), "model.dtype")
        require_one_of(self.table, ("whole", "sharded"), "model.table")
        require_at_least(1, "model", self, ("layers", "heads", "dim", "head_dim", "ffn_dim"))
        require(0 <= self.dropout < 1, "model.dropout", "in [0, 1)", self.dropout)
        require_at_least(0, "model", self, ("item_features", "event_types"))
        if self.score_norm is not None:
            require(self.score_norm > 0, "model.score_norm", "> 0", self.score_norm)
        if self.head_dim is None:
            rule = f"a divisor of model.dim={self.dim} (or set model.head_dim)"
            require(self.dim % self.heads == 0, "model.heads", rule, self.heads)

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
        linear_recurrence, full or recent.
      memory: overwrite (one group of C slots) or append (the newest `max_groups` groups).
      slots: C, memory tokens per group.
      max_groups: G, groups that append keeps.
      plain_memory: the paper's memory, M_k = m_k, which readers see as tokens only. False: an update
        averages with the memory before it (`MemoryTokens.from_query_outputs`), and a linear map of the
        memory is added to a reader's output (`MemoryTokens.add_recall`).
      exact_entries: E, items of the archive that are kept by id with weight and last time, see
        `methods/exact_memory.py`. 0: none.
      consistency: rec2pm: lambda, the weight of L_con. The paper's is 1.
      reference_window: rec2pm: segments that an item of the reference pass sees, from its segment back.
        None: all earlier ones, as in the paper.
      live_memory_prob: rec2pm: share of (user, segment) pairs that read the memory which the
        recurrence makes, instead of the reference memory. The paper's is 0.

    Rarely changed: max_groups, plain_memory, reference_window, live_memory_prob.
    """

    name: str = "rec2pm"
    memory: str = "overwrite"
    slots: int = 4
    max_groups: int = 16
    plain_memory: bool = False
    exact_entries: int = 94  # with 4 int8 slots of 64 numbers, states of 1,024 bytes
    consistency: float = 0.1
    reference_window: int | None = 1
    live_memory_prob: float = 0.5

    def __post_init__(self) -> None:
        require_representable("method", self)
        require_one_of(self.memory, ("overwrite", "append"), "method.memory")
        require_at_least(1, "method", self, ("slots", "max_groups", "reference_window"))
        require_at_least(0, "method", self, ("consistency", "exact_entries"))
        share = self.live_memory_prob
        require(0 <= share <= 1, "method.live_memory_prob", "in [0, 1]", share)
