"""--suite=infer: the cost of one request, B = 1, including the best 10 of 20,000 items."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np

from launch.benchmarks import settings
from launch.benchmarks.case import Case, Work, Workload, make_model_case
from launch.benchmarks.flops import count_matmul_flops
from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import from_dict
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.compute.compiled import prepare_catalogue, read_best, update
from rec2pm_jax.stream.search import Asked
from rec2pm_jax.typing import Events, Params, State

K = 10
HISTORIES = (1_000, 10_000, 100_000)


def make_cases(smoke: bool) -> list[Case]:
    """Return the rows: per backbone full, reads by length of the history, updates, other methods."""
    items = settings.SMOKE_ITEMS if smoke else settings.ITEMS
    models = (
        (settings.SMOKE_SASREC, settings.SMOKE_HSTU) if smoke else (settings.SASREC, settings.HSTU)
    )
    histories = (8, 16) if smoke else HISTORIES
    rows: list[Case] = []
    for model in models:

        def add(method: str, mode: str, length: int = 0, model: dict[str, Any] = model) -> None:
            config = settings.make_config(method, model, smoke=smoke)
            rows.append(make_request_case(config, items, mode, length))

        add("full", "full")
        for length in histories:
            add("rec2pm_o", "read", length)
        add("rec2pm_o", "read_incremental", histories[0])
        add("rec2pm_o", "update", histories[0])
        add("recent", "read")
        for method in ("rec2pm_a", "tok_serial_o", "kv_mask_o"):
            add(method, "read", histories[0])
            add(method, "update", histories[0])
    return rows


def make_request_case(config: Config, items: int, mode: str, history: int = 0) -> Case:
    """Return the row of a request.

    Args:
      config: the whole configuration.
      items: size of the catalogue.
      mode: see `build_request`.
      history: events before the request; 0: as many as the method reads.
    """
    data = config.data
    length = history or (data.window if config.method.name == "full" else data.read_length)
    return make_model_case(
        config,
        Workload(mode, items, batch=1, length=length),
        group=f"{config.model.backbone} requests",
        build="infer:build_request",
        options={"mode": mode, "history": length},
    )


def build_request(config: dict[str, Any], items: int, mode: str, history: int) -> Work:
    """Return one request of one user; inputs come from the host, as in a stream.

    Args:
      config: the whole configuration as a dictionary.
      items: size of the catalogue.
      mode: read or full, the longest window of raw events on top of memory; update, fold one segment,
        old state donated; read_incremental, one event more in an open session.
      history: events in memory before the request.
    """
    method: Any = make_method(from_dict(config), items)
    data, params = method.config.data, jax.jit(method.init)(jax.random.key(0))
    catalogue = prepare_catalogue(method, params)  # once, as a stream does, not in every request
    rng = np.random.default_rng(0)

    def draw_events(count: int) -> tuple[Events, np.ndarray]:
        ids: Any = rng.integers(1, items + 1, (1, count), dtype=np.int32)
        times: Any = np.arange(count, dtype=np.int32)[None] * 60
        return Events(ids, times), np.ones((1, count), bool)

    asked = np.zeros(1, np.int32)
    state = jax.tree.map(np.asarray, method.init_state(params, 1))
    plan = method.plan(history + method.read_length - 1)
    for _ in range(int(plan.updates)):
        state = update(method, params, state, *draw_events(data.segment), asked)
    state = jax.tree.map(np.asarray, state)

    first: tuple[Any, ...]
    if mode == "update":
        call: Callable[..., Any] = functools.partial(update, method, params)
        arguments = (*draw_events(data.segment), asked)
        donated = jax.jit(method.update, donate_argnums=1)
        current = jax.tree.map(jax.numpy.array, state)

        def run() -> None:
            nonlocal current
            current = jax.block_until_ready(donated(params, current, *arguments))

        tokens = data.segment
        first = (state, *arguments)
    elif mode == "read_incremental":
        run, call, first = _build_incremental(method, params, catalogue, state, draw_events)
        tokens = 1
    else:
        call = functools.partial(read_best, method, K, params, catalogue)
        first = (state, *draw_events(method.read_length), Asked(cast(jax.Array, asked)))
        tokens = method.read_length

        def run() -> None:
            jax.block_until_ready(call(*first))

    return Work(
        run,
        tokens=tokens,
        flops=lambda: count_matmul_flops(call, *first),
        fields={"state_bytes_per_user": state.memory[0].nbytes},
    )


def _build_incremental(
    method: Any,
    params: Params,
    catalogue: Any,
    state: State,
    draw_events: Callable[[int], tuple[Events, np.ndarray]],
) -> tuple[Callable[[], None], Callable[..., Any], tuple[Any, ...]]:
    """Return (run, call, its arguments): an event arrives in a session that is half full."""
    before = max(method.read_length // 2, 1)
    session, _ = jax.jit(method.open_session)(params, state, *draw_events(before))
    lengths = np.asarray(session.lengths)
    event, _ = draw_events(1)
    asked = np.zeros(1, np.int32)

    def call(
        params: Params, catalogue: Any, session: Any, event: Events, asked: Any
    ) -> tuple[Any, Any]:
        session, readout = method.step_session(params, session, event, asked)
        return session, method.best(params, readout, K, catalogue)

    step = jax.jit(call, donate_argnums=2)
    first = jax.tree.map(np.asarray, session)

    def run() -> None:
        nonlocal session
        session, _ = jax.block_until_ready(step(params, catalogue, session, event, asked))
        session = session._replace(lengths=lengths)  # so that it never fills up

    return run, call, (params, catalogue, first, event, asked)
