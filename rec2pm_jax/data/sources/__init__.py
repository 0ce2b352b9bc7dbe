"""The registry of what `launch.prepare` can read. A new source is one file here and one line below.

A source file reads the layout of one publisher into `schema.Interactions`, and exports a `Source`
(`source.py`). The room `reading/` has helpers for that.
"""

from __future__ import annotations

from rec2pm_jax.data.sources import (
    amazon,
    complete_journey,
    ebnerd,
    interactions,
    kuairand,
    lastfm,
    merrec,
    movielens,
    online_retail,
    synthetic,
    synthetic_log,
    taobao,
    yambda,
)
from rec2pm_jax.data.sources.source import Source

SOURCES: dict[str, Source] = {
    module.SOURCE.name: module.SOURCE
    for module in (
        merrec,
        movielens,
        kuairand,
        ebnerd,
        amazon,
        yambda,
        taobao,
        lastfm,
        complete_journey,
        online_retail,
        interactions,
        synthetic,
        synthetic_log,
    )
}


def describe_sources() -> str:
    """Return the registry for a terminal."""
    return "\n\n".join(source.describe() for source in SOURCES.values())
