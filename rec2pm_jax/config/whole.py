"""The whole configuration, and rules that involve several sections."""

from __future__ import annotations

import dataclasses

from rec2pm_jax.config.checks import LARGEST_INT, require
from rec2pm_jax.config.model import DataConfig, MethodConfig, ModelConfig
from rec2pm_jax.config.training import ComputeConfig, LossConfig, OptimConfig, TrainConfig
from rec2pm_jax.errors import UserError


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
            require(
                value <= LARGEST_INT, f"data.{field} (of segment, segments)", "below 2**31", value
            )
        if self.train.batch_size % self.compute.accumulate:
            raise UserError(
                f"config.train.batch_size={self.train.batch_size} must be a multiple of "
                f"config.compute.accumulate={self.compute.accumulate}."
            )
        if self.model.table == "sharded":
            self._check_sharded()

    @property
    def uses_times(self) -> bool:
        """Whether elapsed times are counted in minutes, not in events."""
        return bool(self.model.use_times)

    @property
    def reads_times(self) -> bool:
        """Whether events need times."""
        return self.uses_times or self.model.relative_bias == "position_time"

    def _check_sharded(self) -> None:
        """Check that a step needs no more rows of the table than its batch and its negatives."""
        if self.loss.negatives is None:
            raise UserError(
                "config.model.table=sharded needs config.loss.negatives, the number of sampled "
                "negatives: no device sees the whole catalogue."
            )
        if self.optim.table_learning_rate is None:
            raise UserError(
                "config.model.table=sharded needs config.optim.table_learning_rate, for example 0.01: "
                "row-wise Adagrad trains a sharded table."
            )
        needed = {
            "loss.sharing": "shared",
            "model.item_features": 0,
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
