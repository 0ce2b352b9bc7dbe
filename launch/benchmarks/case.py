"""What a suite is made of: rows to measure, and the work behind each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.evaluate.report import display_name

# Every row of a record has these fields, null where they do not apply, and perhaps more.
FIELDS = (
    "suite mode method memory backbone layers heads dim batch length segment slots items dtype "
    "wall_s cpu_s peak_rss_bytes tokens_per_s flops mfu state_bytes_per_user"
).split()


class Case(NamedTuple):
    """One row before it is measured.

    Attributes:
      name: unique in its suite; what `--only` looks at.
      group: rows of a group are measured in alternation, so that drift of the machine meets all.
      build: "module:function" under `launch.benchmarks`; called with `options` in the row's own
        process, it returns `Work`.
      options: JSON-ready arguments of `build`.
      row: fields of the record that are known beforehand.
    """

    name: str
    group: str
    build: str
    options: dict[str, Any]
    row: dict[str, Any]


@dataclasses.dataclass
class Work:
    """What a row's process measures.

    Attributes:
      run: one call, which waits for its results.
      tokens: events that a call takes in, for tokens/s; None where that says nothing.
      flops: () -> matmul FLOPs of a call, see `flops.matmul_flops`; None where there are none.
      fields: fields of the record that only the process knows.
    """

    run: Callable[[], object]
    tokens: int | None = None
    flops: Callable[[], float] | None = None
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


def model_case(
    config: Config,
    *,
    group: str,
    build: str,
    mode: str,
    items: int,
    batch: int,
    length: int,
    name: str = "",
    options: dict[str, Any] | None = None,
) -> Case:
    """A row about a method: `build` gets `config` and `items` beside `options`.

    name: by default backbone, layers x heads, width, method, mode and length.
    """
    model, method = config.model, config.method
    has_memory = method.name not in ("full", "recent")
    row = {
        "mode": mode,
        "method": method.name,
        "memory": method.memory if has_memory else "none",
        "backbone": model.backbone,
        "layers": model.layers,
        "heads": model.heads,
        "dim": model.dim,
        "batch": batch,
        "length": length,
        "segment": config.data.segment if has_memory else None,
        "slots": method.slots if has_memory else None,
        "item_dim": config.item_dim,
        "items": items,
        "dtype": model.dtype,
    }
    shape = f"{model.backbone}{model.layers}x{model.heads}x{model.dim}"
    shown = display_name(row) + ("_sketch" if method.sketch else "")
    name = name or f"{shape}/{shown}/{mode}/{length}"
    return Case(
        name, group, build, {"config": to_dict(config), "items": items} | (options or {}), row
    )
