"""The rows of a suite and the work behind each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.evaluation.report import display_name
from rec2pm_jax.methods.registry import make_method

# Every row of a record has these fields, null where they do not apply, and perhaps more.
FIELDS = (
    "suite mode method memory backbone layers heads dim batch length segment slots items dtype "
    "wall_s cpu_s peak_rss_bytes tokens_per_s flops mfu state_bytes_per_user"
).split()


class Case(NamedTuple):
    """One row before it is measured.

    Attributes:
      name: unique in its suite; `--only` selects by it.
      group: rows of a group are measured in alternation, so that drift of the machine affects all.
      build: "module:function" under `launch.benchmarks`; called with `options` in the row's own
        process, it returns `Work`.
      options: JSON-ready arguments of `build`.
      row: fields of the record that are known before measuring.
    """

    name: str
    group: str
    build: str
    options: dict[str, Any]
    row: dict[str, Any]


@dataclasses.dataclass
class Work:
    """A call to measure, built in the row's process.

    Attributes:
      run: makes one call and waits for its results.
      tokens: events that a call consumes, for tokens/s; None if that has no meaning.
      flops: counts the matmul FLOPs of a call, see `flops.count_matmul_flops`; None without any.
      fields: more fields of the record.
    """

    run: Callable[[], object]
    tokens: int | None = None
    flops: Callable[[], float] | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a row about a method does.

    Attributes:
      mode: step, read, read_incremental, update or full.
      items: size of the catalogue.
      batch: users per call.
      length: events of each user.
    """

    mode: str
    items: int
    batch: int
    length: int


def make_model_case(
    config: Config,
    workload: Workload,
    *,
    group: str,
    build: str,
    name: str = "",
    options: dict[str, Any] | None = None,
) -> Case:
    """Return a row about a method.

    Args:
      config: the method and its model.
      workload: what the row does.
      group: see `Case`.
      build: see `Case`; it gets `config` and `items` beside `options`.
      name: by default backbone, layers x heads, width, method, mode and length.
      options: more arguments of `build`.
    """
    model, method = config.model, config.method
    made = make_method(config, workload.items)
    row = {
        "mode": workload.mode,
        "method": method.name,
        "memory": made.memory_kind,
        "backbone": model.backbone,
        "layers": model.layers,
        "heads": model.heads,
        "dim": model.dim,
        "batch": workload.batch,
        "length": workload.length,
        "segment": config.data.segment if made.stores_memory else None,
        "slots": method.slots if made.stores_memory else None,
        "items": workload.items,
        "dtype": model.dtype,
    }
    shape = f"{model.backbone}{model.layers}x{model.heads}x{model.dim}"
    name = name or f"{shape}/{display_name(row)}/{workload.mode}/{workload.length}"
    arguments = {"config": to_dict(config), "items": workload.items} | (options or {})
    return Case(name, group, build, arguments, row)
