"""The identity of a preparation: what decides whether a killed one can be resumed."""

from __future__ import annotations

import dataclasses
from glob import escape, glob
from pathlib import Path

from rec2pm_jax.data.info import FORMAT_VERSION
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.reading.log_files import list_files
from rec2pm_jax.data.sources import SOURCES

_STAGES_VERSION = 2  # of the files between stages


def make_identity(options: PrepareOptions) -> dict:
    """Return the options and input files that determine the stages of a preparation.

    Finished stages of a killed start are used again only if this is equal.
    """
    fields = dataclasses.asdict(options)
    for name in ("progress", "overwrite", "shards", "force"):
        del fields[name]
    stats = [(str(file), file.stat()) for file in _input_files(options)]
    return {
        "version": [FORMAT_VERSION, _STAGES_VERSION],
        "options": fields,
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }


def _input_files(options: PrepareOptions) -> list[Path]:
    """Return the files that --input and --items name, and those that a source reads beside them."""
    table = [Path(options.items)] if options.items and Path(options.items).is_file() else []
    return table + _log_files(options)


def _log_files(options: PrepareOptions) -> list[Path]:
    if not options.input:
        return []
    path = Path(options.input)
    if path.is_dir():
        return list_files(path)
    if not path.is_file():
        return sorted(Path(name) for name in glob(options.input, recursive=True))
    patterns = getattr(SOURCES.get(options.source), "beside", ())
    beside = [
        found for p in patterns for found in path.parent.glob(p.format(stem=escape(path.stem)))
    ]
    return [path, *sorted(beside)]
