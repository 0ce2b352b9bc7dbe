"""`update` and `read` of a trained model as `jax.export` artifacts: programs that need JAX alone.

Both take (weights, inputs), two flat dictionaries of arrays. Weights are arguments, so that two
functions share one copy on the device; the batch is symbolic, widths are fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.typing import Array, Events, Params, State

PLATFORMS = ("cpu", "cuda", "tpu")
_PARAMS, _CATALOGUE, _POPULAR = "params/", "catalogue", "popular/"
_MEANING = {
    "memory": "preference memory; zeros for a new user",
    "groups": "memory groups in use; 0 for a new user",
    "segments": "segments that the memory has seen; 0 for a new user",
    "ids": "item ids, the oldest event first, 0 after the last",
    "times": "seconds since time_origin, 0 after the last event",
    "types": "event types: 1 + the position in event_types, 0 after the last event",
    "length": "how many of the events are there; a row of 0 keeps its state bit for bit",
    "next_time": "time of the event after the segment",
    "request_time": "time that is asked for",
}
_READ_MEANING = {"length": "how many of the events are there; a row of 0 gets the popular items"}
_RETURNED = {
    "vectors": "what scores the catalogue, as the model's outputs are (zeros without events)",
    "scores": "of the best items, the best first; counts where a row has no events",
    "items": "their item ids, the lower id first where scores are equal",
}


class Artifact(NamedTuple):
    """One exported function.

    Attributes:
      program: what `jax.export.deserialize` takes.
      convention: version of JAX's calling convention.
      takes, returns: name -> {"shape": with "b" for the batch, "dtype", "meaning"}.
    """

    program: bytes
    convention: int
    takes: dict[str, dict]
    returns: dict[str, dict]


def weights_of(recommender: Recommender, k: int) -> dict[str, np.ndarray]:
    """All arrays that the functions read: parameters, the table as it is scored, the popular items.

    Raises:
      UserError: some are NaN or infinite.
    """
    method, params = recommender.method, recommender.params
    counts, items = recommender.popular
    weights = {f"{_PARAMS}{n}": x for n, x in flatten_dict(params, sep="/").items()}
    weights |= {_CATALOGUE: jax.jit(method.catalogue)(params)}
    weights |= {f"{_POPULAR}scores": counts[:k], f"{_POPULAR}items": items[:k].astype(np.int32)}
    weights = {name: np.asarray(x) for name, x in weights.items()}
    bad = [name for name, x in weights.items() if not np.isfinite(x).all()]
    if bad:
        raise UserError(
            f"Weights {', '.join(bad)} are NaN or infinite; the parameters have diverged (use another "
            "checkpoint, or train again with a lower learning rate)."
        )
    return weights


def params_of(weights: dict[str, Array]) -> Params:
    """The parameters as methods take them."""
    mine = {n.removeprefix(_PARAMS): x for n, x in weights.items() if n.startswith(_PARAMS)}
    return unflatten_dict(mine, sep="/")


def functions(method: Method, k: int) -> dict[str, Callable]:
    """`update` and `read` over (weights, inputs); methods without a memory have no update."""

    def update(weights: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
        state, events, valid = _unpack(inputs)
        state = method.update(params_of(weights), state, events, valid, inputs.get("next_time"))
        return state._asdict()

    def read(weights: dict[str, Array], inputs: dict[str, Array]) -> dict[str, Array]:
        state, events, valid = _unpack(inputs)
        params = params_of(weights)
        vectors = method.read(params, state, events, valid, inputs.get("request_time"))
        scores, items = method.best(params, vectors, k, weights[_CATALOGUE])
        known = inputs["length"][:, None] > 0
        return {
            "vectors": jnp.where(known, vectors, 0),
            "scores": jnp.where(known, scores, weights[f"{_POPULAR}scores"]),
            "items": jnp.where(known, items, weights[f"{_POPULAR}items"]),
        }

    return {"update": update, "read": read} if _has_memory(method) else {"read": read}


def inputs_of(method: Method, name: str, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of what a function takes beside the weights; `batch` may be symbolic."""
    model, data = method.config.model, method.config.data
    width = data.segment if name == "update" else method.read_length
    per_event, per_user = (batch, width), (batch,)
    state = jax.eval_shape(lambda: method.init_state(None, 1))
    shapes = {
        field: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)
        for field, leaf in state._asdict().items()
    }
    whole = {"ids": per_event, "length": per_user}
    if model.relative_bias == "position_time":
        whole["times"] = per_event
        whole["next_time" if name == "update" else "request_time"] = per_user
    if model.event_types:
        whole["types"] = per_event
    return shapes | {field: jax.ShapeDtypeStruct(s, jnp.int32) for field, s in whole.items()}


def export_functions(method: Method, weights: dict[str, np.ndarray], k: int) -> dict[str, Artifact]:
    """Lowers `functions` for all of `PLATFORMS`, with any batch size."""
    # One program for all platforms, and windows are short: the definition of attention suits them all.
    config = method.config
    dense = dataclasses.replace(config.compute, attention="dense")
    method = make_method(dataclasses.replace(config, compute=dense), method.num_items)
    (batch,) = export.symbolic_shape("b")
    shapes = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in weights.items()}
    artifacts = {}
    for name, function in functions(method, k).items():
        inputs = inputs_of(method, name, batch)
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(shapes, inputs)
        returns = exported.out_tree.unflatten(exported.out_avals)
        meaning = _MEANING | (_READ_MEANING if name == "read" else {})
        artifacts[name] = Artifact(
            bytes(exported.serialize()),
            exported.calling_convention_version,
            {field: _described(x, meaning[field]) for field, x in inputs.items()},
            {field: _described(x, (_MEANING | _RETURNED)[field]) for field, x in returns.items()},
        )
    return artifacts


def _unpack(inputs: dict[str, Array]) -> tuple[State, Events, Array]:
    ids = inputs["ids"]
    state = State(*(inputs[field] for field in State._fields))
    events = Events(ids, inputs.get("times"), inputs.get("types"))
    valid = jnp.arange(ids.shape[1], dtype=jnp.int32) < inputs["length"][:, None]
    return state, events, valid


def _has_memory(method: Method) -> bool:
    return bool(jax.eval_shape(lambda: method.init_state(None, 1)).memory.size)


def _described(leaf, meaning: str) -> dict:
    shape = [size if isinstance(size, int) else str(size) for size in leaf.shape]
    return {"shape": shape, "dtype": str(leaf.dtype), "meaning": meaning}
