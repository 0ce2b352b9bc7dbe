"""`update` and `read` of a trained model as `jax.export` programs, which need JAX alone.

Both take (weights, inputs), two flat dictionaries of arrays. Weights are arguments, so that both
programs share one copy on the device. The batch size is symbolic, widths are fixed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.method import Method
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.catalogue.filters import ItemFilter
from rec2pm_jax.nn.catalogue.own_items import sort_best
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.typing import Array, Events, ExactMemory, Params, State

PLATFORMS = ("cpu", "cuda", "tpu")
DENIED = 512  # items that may be denied to one user

Arrays = dict[str, Array]
ServingFunction = Callable[[Arrays, Arrays], Arrays]  # (weights, inputs) -> outputs

_PARAMS, _CATALOGUE, _POPULAR = "params/", "catalogue", "popular/"  # names of weights
_STATE_MEANINGS = {
    "memory": "preference memory; zeros for a new user",
    "groups": "memory groups in use; 0 for a new user",
    "segments": "segments that the memory has seen; 0 for a new user",
    "exact_items": "item ids of the exact memory; zeros for a new user",
    "exact_weights": "weights of these items; zeros for a new user",
    "exact_last": "clocks of their last events; zeros for a new user",
}
_EVENT_MEANINGS = {
    "ids": "item ids, the oldest event first, 0 after the last",
    "times": "seconds since time_origin, 0 after the last event",
    "types": "event types: 1 + the position in event_types, 0 after the last event",
}
_INPUT_MEANINGS = {
    "update": {
        "length": "number of events; a row with 0 keeps its state bit for bit",
        "next_time": "time of the event after the segment",
    },
    "read": {
        "length": "number of events; a row with 0 gets the popular items",
        "request_time": "time of the request; -2147483648 if it is not known",
        "denied": "ids of items that a user must not get, 0 for none",
        "blocked": "whether an item must not be recommended to anyone, by item id",
    },
}
_OUTPUT_MEANINGS = _STATE_MEANINGS | {
    "vectors": "output of the model that scores the catalogue; zeros without events",
    "scores": "of the best items, the best first, -inf where denied and blocked items leave fewer; "
    "counts for a row without events",
    "items": "ids of these items, the lower id first if scores are equal",
}


class ExportedFunction(NamedTuple):
    """One exported function.

    Attributes:
      program: what `jax.export.deserialize` takes.
      convention: version of JAX's calling convention.
      inputs, outputs: name -> {"shape": with "b" for the batch, "dtype", "meaning"}.
    """

    program: bytes
    convention: int
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


def collect_weights(recommender: Recommender, k: int) -> dict[str, np.ndarray]:
    """Return all arrays that the functions read: parameters, prepared item table, popular items.

    Args:
      k: how many items `read` returns.

    Raises:
      UserError: some weights are NaN or infinite.
    """
    counts, items = recommender.popular_items
    arrays = {f"{_PARAMS}{n}": x for n, x in flatten_dict(recommender.params, sep="/").items()}
    arrays |= {_CATALOGUE: recommender.scored_table}
    arrays |= {f"{_POPULAR}scores": counts[:k], f"{_POPULAR}items": items[:k].astype(np.int32)}
    weights = {name: np.asarray(x) for name, x in arrays.items()}
    bad = [name for name, x in weights.items() if not np.isfinite(x).all()]
    if bad:
        raise UserError(
            f"Weights {', '.join(bad)} are NaN or infinite; the parameters have diverged (use another "
            "checkpoint, or train again with a lower learning rate)."
        )
    return weights


def make_functions(method: Method, k: int) -> dict[str, ServingFunction]:
    """Return `read`, and `update` for methods with memory, by name.

    Args:
      k: how many items `read` returns.
    """

    def update(weights: Arrays, inputs: Arrays) -> Arrays:
        state, events, valid = _unpack_inputs(inputs)
        params = _unpack_params(weights)
        state = method.update(params, state, events, valid, inputs.get("next_time"))
        return flatten_state(state)

    def read(weights: Arrays, inputs: Arrays) -> Arrays:
        state, events, valid = _unpack_inputs(inputs)
        params = _unpack_params(weights)
        readout = method.read(params, state, events, valid, inputs.get("request_time"))
        rule = ItemFilter(inputs["denied"], inputs["blocked"])
        scores, items = method.best(params, readout, k, weights[_CATALOGUE], rule)
        counts = jnp.broadcast_to(weights[f"{_POPULAR}scores"], scores.shape)
        popular = jnp.broadcast_to(weights[f"{_POPULAR}items"], items.shape)
        counts, popular = sort_best(rule.drop(counts, popular), popular, k)
        has_events = inputs["length"][:, None] > 0
        return {
            "vectors": jnp.where(has_events, readout.vectors, 0),
            "scores": jnp.where(has_events, scores, counts),
            "items": jnp.where(has_events, items, popular),
        }

    return {"update": update, "read": read} if method.stores_memory else {"read": read}


def make_input_shapes(method: Method, name: str, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and dtypes of a function's inputs.

    Args:
      name: "update" or "read".
      batch: how many users; may be symbolic.
    """
    model, data = method.config.model, method.config.data
    width = data.segment if name == "update" else method.read_length
    per_event, per_user = (batch, width), (batch,)
    state = jax.eval_shape(lambda: method.init_state(None, 1))
    shapes = {
        field: jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)
        for field, leaf in flatten_state(state).items()
    }
    integers: dict[str, tuple[Any, ...]] = {"ids": per_event, "length": per_user}
    if method.config.reads_times:
        integers["times"] = per_event
        integers["next_time" if name == "update" else "request_time"] = per_user
    if model.event_types:
        integers["types"] = per_event
    if name == "read":
        integers["denied"] = (batch, DENIED)
        shapes["blocked"] = jax.ShapeDtypeStruct((method.num_items + 1,), jnp.bool_)
    return shapes | {field: jax.ShapeDtypeStruct(s, jnp.int32) for field, s in integers.items()}


def flatten_state(state: State) -> dict[str, Any]:
    """Return the arrays of a state by their names among inputs and outputs."""
    fields = state._asdict()
    exact = fields.pop("exact")
    return fields | {f"exact_{name}": leaf for name, leaf in exact._asdict().items()}


def export_functions(
    method: Method, weights: dict[str, np.ndarray], k: int
) -> dict[str, ExportedFunction]:
    """Compile `make_functions` to portable programs for all of `PLATFORMS` and any batch size.

    Args:
      weights: see `collect_weights`.
      k: how many items `read` returns.

    Returns:
      The exported functions by name.
    """
    # One program serves all platforms. The windows are short, so dense attention suits them all.
    config = method.config
    dense = dataclasses.replace(config.compute, attention="dense")
    method = make_method(dataclasses.replace(config, compute=dense), method.num_items)
    (batch,) = export.symbolic_shape("b")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in weights.items()}
    exports = {}
    for name, function in make_functions(method, k).items():
        inputs = make_input_shapes(method, name, batch)
        exported = export.export(jax.jit(function), platforms=PLATFORMS)(shapes, inputs)
        outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        exports[name] = ExportedFunction(
            bytes(exported.serialize()),
            exported.calling_convention_version,
            _describe(inputs, _STATE_MEANINGS | _EVENT_MEANINGS | _INPUT_MEANINGS[name]),
            _describe(outputs, _OUTPUT_MEANINGS),
        )
    return exports


def _unpack_params(weights: Arrays) -> Params:
    """Return the parameters as methods take them."""
    flat = {n.removeprefix(_PARAMS): x for n, x in weights.items() if n.startswith(_PARAMS)}
    return unflatten_dict(flat, sep="/")


def _unpack_inputs(inputs: Arrays) -> tuple[State, Events, Array]:
    """Return (state, events, valid) as methods take them."""
    ids = inputs["ids"]
    exact = ExactMemory(*(inputs[f"exact_{field}"] for field in ExactMemory._fields))
    state = State(inputs["memory"], inputs["groups"], inputs["segments"], exact)
    events = Events(ids, inputs.get("times"), inputs.get("types"))
    valid = jnp.arange(ids.shape[1], dtype=jnp.int32) < inputs["length"][:, None]
    return state, events, valid


def _describe(arrays: dict[str, Any], meanings: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the entries of a manifest for arrays, given as their shapes and dtypes."""
    described = {}
    for name, x in arrays.items():
        shape = [size if isinstance(size, int) else str(size) for size in x.shape]
        described[name] = {"shape": shape, "dtype": str(x.dtype), "meaning": meanings[name]}
    return described
