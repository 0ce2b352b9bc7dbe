"""A directory that serves a trained model without this package.

    manifest.json   versions, config, sizes, what each function takes and returns, checksums
    update.bin      `jax.export` artifacts, see `artifacts` (methods without a memory have no update)
    read.bin
    weights.npz     their first argument, by name
    items.jsonl     raw id, title and count of every item: line i is item id i, from 1

It is written under a temporary name and renamed, so that what has the name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rec2pm_jax.config_dict import config_hash, to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.provenance import git_commit
from rec2pm_jax.stream.artifacts import PLATFORMS, export_functions, weights_of
from rec2pm_jax.stream.recommender import Recommender

FORMAT_VERSION = 1


def write_export(
    recommender: Recommender, meta: Mapping[str, Any], output: str | Path, k: int
) -> dict[str, Any]:
    """Writes `output`; see the module.

    Args:
      meta: of the checkpoint (`step`, `data_hash`).
      k: items that `read` returns; fewer where the catalogue is smaller.

    Returns:
      The manifest.

    Raises:
      UserError: `output` is there already or cannot be written, or the parameters are not finite.
    """
    output = Path(output)
    check_free(output)
    k = min(k, recommender.method.num_items)
    weights = weights_of(recommender, k)
    artifacts = export_functions(recommender.method, weights, k)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, artifact in artifacts.items():
            (temporary / f"{name}.bin").write_bytes(artifact.program)
        np.savez(temporary / "weights.npz", **weights)
        with open(temporary / "items.jsonl", "w", encoding="utf-8") as file:
            items = recommender.catalogue.items
            rows = zip(items.raw_ids[1:], items.titles[1:], items.counts[1:].tolist(), strict=True)
            for raw, title, count in rows:
                line = {"id": raw, "title": title, "count": count}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        manifest = _manifest(recommender, meta, k, weights, artifacts)
        manifest["files"] = {file.name: _file(file) for file in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        os.rename(temporary, output)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def check_free(output: Path) -> None:
    """Raises UserError if something has the name already: what serves must not change under it."""
    if output.exists():
        raise UserError(
            f"--output={output} is there already: choose another name, or move it away once nothing "
            "serves from it."
        )


def _manifest(recommender: Recommender, meta, k: int, weights, artifacts) -> dict[str, Any]:
    method, catalogue = recommender.method, recommender.catalogue
    data = method.config.data
    return {
        "format_version": FORMAT_VERSION,
        "versions": {
            "jax": jax.__version__,
            "calling_convention": max(a.convention for a in artifacts.values()),
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
            "rule": (
                "Events wait until there are segment + recent of them; then update takes the first "
                "`segment` and they are forgotten. read takes those that wait: the newest "
                "read_length where there is no update."
            ),
        },
        "functions": {
            name: {
                "file": f"{name}.bin",
                "call": f"{name}(weights, inputs) -> outputs; dictionaries by name; b is any batch",
                "inputs": artifact.takes,
                "outputs": artifact.returns,
            }
            for name, artifact in artifacts.items()
        },
        "weights": {n: {"shape": x.shape, "dtype": str(x.dtype)} for n, x in weights.items()},
    }


def _file(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }


def _flush(path: Path) -> None:
    """To the disk before the rename: a name must not outlive its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
