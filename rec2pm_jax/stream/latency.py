"""How long one user waits for a memory update and for a read."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import cast

import jax
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.compute.batches import next_power_of_two
from rec2pm_jax.stream.compute.compiled import prepare_catalogue, read_best, update
from rec2pm_jax.stream.search import Asked
from rec2pm_jax.typing import Array, Events, Params

_WARM_UP = 5  # calls that are not counted


def measure(
    method: Method, params: Params, *, k: int = 10, repetitions: int = 50, seed: int = 0
) -> dict[str, float | None]:
    """Time the compiled functions that a stream calls, at B = 1.

    Inputs start on the host, as they do in a stream, and results are waited for. The read takes
    `read_length` raw events, scores the whole catalogue and ranks it. Parsing lines and looking up ids
    are not included.

    Args:
      k: how many items a read returns.
      repetitions: timed calls, of which the median counts.
      seed: of the random events.

    Returns:
      {"update_ms": milliseconds to update the memory with one segment, None for methods without
       memory; "read_ms": milliseconds to recommend}.
    """
    rng = np.random.default_rng(seed)

    def make_events(length: int) -> tuple[Events, np.ndarray]:
        ids = rng.integers(1, method.num_items + 1, (1, length)).astype(np.int32)
        times = np.arange(length, dtype=np.int32)[None]
        events = Events(*cast(tuple[Array, Array, Array], (ids, times, np.ones_like(ids))))
        return events, np.ones((1, length), bool)

    state = jax.tree.map(np.asarray, method.init_state(params, 1))
    asked = np.zeros(1, np.int32)
    segment = (*make_events(method.config.data.segment), asked)
    update_ms = None
    if method.stores_memory:
        update_ms = _median_ms(lambda: update(method, params, state, *segment), repetitions)
        state = jax.tree.map(np.asarray, update(method, params, state, *segment))
    window = make_events(method.read_length)
    table = prepare_catalogue(method, params)
    width = min(next_power_of_two(k), method.num_items)
    read_ms = _median_ms(
        lambda: read_best(method, width, params, table, state, *window, Asked(cast(Array, asked))),
        repetitions,
    )
    return {"update_ms": update_ms, "read_ms": read_ms}


def _median_ms(call: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(_WARM_UP + repetitions):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[_WARM_UP:])
