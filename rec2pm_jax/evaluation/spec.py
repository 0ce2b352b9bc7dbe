"""The conditions of an evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.histories import Histories
from rec2pm_jax.evaluation.targets import Targets

LARGEST_CUTOFF = 1000  # longer lists of all users would fill the memory


@dataclasses.dataclass(frozen=True)
class Measures:
    """What an evaluation measures beside the metrics that every record has.

    Attributes:
      cutoffs: numbers k of places for which HR, NDCG, recall, precision and MAP are added.
      lists: whether the recommended lists are measured, see `list_metrics`; at `cutoffs`, or at 10.
      slices: whether metrics are split by history length, repeated or new item, and item age.

    Raises:
      UserError: a cutoff is not in [1, 1000] or occurs twice.

    >>> Measures(cutoffs=(5, 20), lists=True).list_cutoffs
    (5, 20)
    """

    cutoffs: tuple[int, ...] = ()
    lists: bool = False
    slices: bool = False

    def __post_init__(self) -> None:
        inside = all(1 <= k <= LARGEST_CUTOFF for k in self.cutoffs)
        if len(set(self.cutoffs)) < len(self.cutoffs) or not inside:
            raise UserError(
                f"cutoffs={','.join(map(str, self.cutoffs))}: write each number of places once, from 1 "
                f"to {LARGEST_CUTOFF}, for example 5,10,20."
            )

    @property
    def list_cutoffs(self) -> tuple[int, ...]:
        """The cutoffs of measures of lists."""
        return self.cutoffs or (10,)


@dataclasses.dataclass(frozen=True)
class EvalSpec:
    """What is evaluated, with which memory, and over which users.

    Attributes:
      split: "validation" or "test".
      protocol: name of the split rule, see `data.splits`; None for that of the configuration.
      memory: "overwrite", "append", "one_time" or "none"; None for the memory that the method
        serves with. Heuristics have no memory.
      memory_format: format that memory is kept in between updates: "float32", "bfloat16" or
        "int8", see `methods.codec`.
      max_users: size of a pseudo-random subset of the users; None for all of them.
      max_segments: how many of the newest archived segments the memory folds; None for all.
      batch_size: largest number of users per compiled call. Results do not depend on it.
      swap: whether every target is also ranked with another user's memory.
      seed: chooses the subset of users.
      request_time_known: whether a prediction may use the time of its target, as a server knows the
        time of a request. Heuristics then leave out the items of the current basket. None: a model that
        reads times may use it, and nothing else may.
      corrupt: changes the histories that are read, never the targets; see `denoise.Noise`.
      target_types: event types that are targets, see `config.loss.target_types`; None for those of the
        configuration (all types for a heuristic).
      measures: what is measured beside the metrics that every record has.

    >>> EvalSpec("test", max_users=500).memory_format
    'float32'
    """

    split: str
    protocol: str | None = None
    memory: str | None = None
    memory_format: str = "float32"
    max_users: int | None = None
    max_segments: int | None = None
    batch_size: int = 128
    swap: bool = True
    seed: int = 0
    request_time_known: bool | None = None
    corrupt: Callable[[Histories, Targets], Histories] | None = None
    target_types: str | None = None
    measures: Measures = Measures()

    def knows_request_time(self, histories: Histories, default: bool) -> bool:
        """Return whether predictions may use the time of their target.

        Args:
          histories: of the dataset.
          default: where `request_time_known` leaves it open.

        Raises:
          UserError: they should, but the dataset has no times.
        """
        if self.request_time_known and histories.times is None:
            raise UserError(
                "request_time_known needs a dataset with times, and this one has an order only; leave "
                "it out."
            )
        return default if self.request_time_known is None else self.request_time_known
