"""How long one user waits: a memory update and a read, one user at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.batches import power_of_two, prepared, top, update
from rec2pm_jax.typing import Events, Params

_WARM_UP = 5


def measure(
    method: Method, params: Params, *, k: int = 10, repetitions: int = 50, seed: int = 0
) -> dict[str, float | None]:
    """Medians over `repetitions` of the compiled functions that a stream calls, at B = 1.

    Inputs start on the host, as they do in a stream, and results are waited for. The read takes the
    longest window of raw events, `read_length`, and includes scoring the whole catalogue and its
    top `k`. Reading JSON and looking up ids are not included.

    Args:
      seed: of the random events.

    Returns:
      {"update_ms": milliseconds to fold one segment, None for methods without memory;
       "read_ms": milliseconds to recommend}.
    """
    rng = np.random.default_rng(seed)

    def events(length: int) -> tuple[Events, np.ndarray]:
        ids = rng.integers(1, method.num_items + 1, (1, length)).astype(np.int32)
        times = np.arange(length, dtype=np.int32)[None]
        return Events(ids, times, np.ones_like(ids)), np.ones((1, length), bool)

    state = jax.tree.map(np.asarray, method.init_state(params, 1))
    asked = np.zeros(1, np.int32)
    segment = (*events(method.config.data.segment), asked)
    update_ms = None
    if state.memory.size:
        update_ms = _median_ms(lambda: update(method, params, state, *segment), repetitions)
        state = jax.tree.map(np.asarray, update(method, params, state, *segment))
    window = events(method.read_length)
    table = prepared(method, params)
    deep = min(power_of_two(k), method.num_items)
    read_ms = _median_ms(
        lambda: top(method, deep, params, table, state, *window, asked), repetitions
    )
    return {"update_ms": update_ms, "read_ms": read_ms}


def _median_ms(call: Callable[[], object], repetitions: int) -> float:
    seconds = []
    for _ in range(_WARM_UP + repetitions):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[_WARM_UP:])
