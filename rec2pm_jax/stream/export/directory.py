"""A directory that serves a trained model without this package.

manifest.json   versions, config, sizes, inputs and outputs of each function, checksums
update.bin      `jax.export` programs, see `programs`; methods without memory have no update
read.bin
weights.npz     their first argument, by name
items.jsonl     raw id, title, category and count of every item: line i is item id i, from 1
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.export.new_directory import check_not_existing, new_directory
from rec2pm_jax.stream.export.programs import (
    PLATFORMS,
    ExportedFunction,
    collect_weights,
    export_functions,
)
from rec2pm_jax.stream.recommender import Recommender

FORMAT_VERSION = 2
_RULE = (
    "Events wait until there are segment + recent of them. Then update takes the first `segment`, "
    "which are forgotten. read takes the waiting events; without an update, the newest read_length."
)


def write_export(
    recommender: Recommender, meta: Mapping[str, Any], output: str | Path, k: int
) -> dict[str, Any]:
    """Write the directory.

    Args:
      meta: of the checkpoint; `step` and `data_hash` are copied.
      output: the directory, which must not exist.
      k: how many items `read` returns; fewer if the catalogue is smaller.

    Returns:
      The manifest.

    Raises:
      UserError: `output` exists or cannot be written, or the parameters are not finite.
    """
    output = check_not_existing(output)
    k = min(k, recommender.method.num_items)
    weights = collect_weights(recommender, k)
    functions = export_functions(recommender.method, weights, k)
    manifest = _make_manifest(recommender, meta, k, weights, functions)
    with new_directory(output, manifest) as temporary:
        for name, function in functions.items():
            (temporary / f"{name}.bin").write_bytes(function.program)
        _write_weights(temporary / "weights.npz", weights)
        _write_items(temporary / "items.jsonl", recommender)
    return manifest


def _make_manifest(
    recommender: Recommender,
    meta: Mapping[str, Any],
    k: int,
    weights: Mapping[str, np.ndarray],
    functions: Mapping[str, ExportedFunction],
) -> dict[str, Any]:
    method, catalogue = recommender.method, recommender.catalogue
    data = method.config.data
    return {
        "format_version": FORMAT_VERSION,
        "versions": {
            "jax": jax.__version__,
            "calling_convention": max(f.convention for f in functions.values()),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "git_commit": git_commit(),
        },
        "platforms": list(PLATFORMS),
        "config": to_dict(method.config),
        "config_hash": config_hash(method.config),
        "step": meta["step"],
        "data_hash": meta["data_hash"],
        "serving": {
            "segment": data.segment,
            "recent": data.recent,
            "read_length": method.read_length,
            "k": k,
            "items": method.num_items,
            "time_origin": catalogue.time_origin,
            "event_types": list(catalogue.event_types),
            "reading": catalogue.rules._asdict(),
            "rule": _RULE,
        },
        "functions": {
            name: {
                "file": f"{name}.bin",
                "call": f"{name}(weights, inputs) -> outputs; dictionaries by name; b is any batch",
                "inputs": function.inputs,
                "outputs": function.outputs,
            }
            for name, function in functions.items()
        },
        "weights": {n: {"shape": x.shape, "dtype": str(x.dtype)} for n, x in weights.items()},
    }


def _write_weights(path: Path, weights: Mapping[str, Any]) -> None:
    np.savez(path, **weights)


def _write_items(path: Path, recommender: Recommender) -> None:
    items = recommender.catalogue.items
    columns = (items.raw_ids, items.titles, items.categories, items.counts.tolist())
    with open(path, "w", encoding="utf-8") as file:
        for raw_id, title, category, count in zip(*(column[1:] for column in columns), strict=True):
            line = {"id": raw_id, "title": title, "category": category, "count": count}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
