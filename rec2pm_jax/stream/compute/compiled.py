"""What a stream asks of a model, compiled: updates and reads of batches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from rec2pm_jax.methods.method import Method
from rec2pm_jax.stream.search import Asked
from rec2pm_jax.typing import Array, Events, Params, State

_ALONE = threading.Lock()
_T = TypeVar("_T")


@functools.partial(jax.jit, static_argnums=0)
def update(
    method: Method,
    params: Params,
    state: State,
    events: Events,
    valid: Array,
    next_time: Array | None,
) -> State:
    """Update the memories of a batch with one segment each, see `Method.update`."""
    return method.update(params, state, events, valid, next_time)


@functools.partial(jax.jit, static_argnums=0)
def compress(
    method: Method, params: Params, events: Events, valid: Array, next_time: Array | None
) -> State:
    """Make the memories of a batch in one pass, see `Method.compress`."""
    return method.compress(params, events, valid, next_time)


@functools.partial(jax.jit, static_argnums=(0, 1))
def read_best(
    method: Method,
    k: int,
    params: Params,
    catalogue: Array,
    state: State,
    events: Events,
    valid: Array,
    asked: Asked,
) -> tuple[Array, Array]:
    """Return the k best items of a batch, best first; see `Method.read` and `Method.best`.

    Args:
      catalogue: the item table, see `prepare_catalogue`.
      asked: the requests.

    Returns:
      (scores float32 [B, k], ids int32 [B, k]); -inf where the filter leaves fewer items.
    """
    readout = method.read(params, state, events, valid, asked.time)
    return method.best(params, readout, k, catalogue, asked.rule)


def run(method: Method, program: Callable[..., _T], *args: Any) -> _T:
    """Return program(*args) of a method; programs over several devices run one at a time.

    Two threads that start such programs could each have some of the devices and wait for the others.
    """
    if not method.spans_devices:
        return program(*args)
    with _ALONE:
        return jax.block_until_ready(program(*args))


def prepare_catalogue(method: Method, params: Params) -> Array:
    """Return the item table prepared for scoring, computed once for all reads."""
    return method.catalogue(params)
