"""--suite=scale: cost by the length of the history, B = 1, SASRec."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, Workload, make_model_case
from launch.benchmarks.flops import count_matmul_flops
from launch.benchmarks.train import make_step_case
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.typing import Events

LENGTHS = (1_000, 2_000, 4_000, 8_000, 16_000)
SEGMENT = 200


def make_cases(smoke: bool) -> list[Case]:
    """Return the rows: for every length a step of `full` and of rec2pm_o, and a one-pass memory.

    The latter two come also with a reference pass whose items see two segments.
    """
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    model = settings.SMOKE_SASREC if smoke else settings.SASREC
    segment, lengths = (4, (8, 16)) if smoke else (SEGMENT, LENGTHS)
    rows: list[Case] = []
    for length in lengths:
        changes = {
            "data": {"segment": segment, "segments": length // segment},
            "train": {"batch_size": 1},
        }
        group = f"length {length}"
        config = settings.make_config("full", model, smoke=smoke, **changes)
        rows.append(make_step_case(config, items, group))
        for window, name in ((None, ""), (2, "windowed ")):
            config = settings.make_config("rec2pm_o", model, smoke=smoke, **changes)
            method = dataclasses.replace(config.method, reference_window=window)
            config = dataclasses.replace(config, method=method)
            named = f"{name}rec2pm_o step/{length}" if window else ""
            rows.append(make_step_case(config, items, group, named, reference_window=window))
            case = make_model_case(
                config,
                Workload("update", items, batch=1, length=length),
                name=f"{name}reference pass/{length}",
                group=group,
                build="scale:build_reference_pass",
            )
            extra = {"memory": "one_time", "reference_window": window}
            rows.append(case._replace(row=case.row | extra))
    return rows


def build_reference_pass(config: dict[str, Any], items: int) -> Work:
    """Return `Method.compress`: the memory of a whole history in one pass."""
    method: Any = make_method(from_dict(config), items)
    params = jax.jit(method.init)(jax.random.key(0))
    ids = settings.random_batch(method.config, items)["ids"][:, :-1]
    arguments = (Events(ids), ids > 0)
    compress = jax.jit(method.compress)
    state = jax.block_until_ready(compress(params, *arguments))
    return Work(
        lambda: jax.block_until_ready(compress(params, *arguments)),
        tokens=ids.size,
        flops=lambda: count_matmul_flops(method.compress, params, *arguments),
        fields={"state_bytes_per_user": state.memory[0].nbytes},
    )
