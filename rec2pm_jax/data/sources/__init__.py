"""The registry of what `launch.prepare` can read. A new source is one file here and one line below.

A source file reads the layout of one publisher into `schema.Interactions`, and exports a `Source`. The
helpers: `source.py` (an entry of the registry), `download.py` (downloads), `scan.py` (large files of
publishers, in batches), `log_files.py`, `column_checks.py` and `times.py` (your own logs).
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
    synthetic,
    synthetic_log,
    taobao,
    yambda,
)
from rec2pm_jax.data.sources.source import Source

_INTERACTIONS = Source(
    name="interactions",
    description="Your own log: CSV, TSV, Parquet or JSON-lines",
    licence="Yours.",
    load=interactions.load,
    by_hand="name the columns",
    example="--input=log.csv --user_column=uid --item_column=sku --time_column=ts",
)
_SYNTHETIC = Source(
    name="synthetic",
    description="Generated users whose taste shows in their first events only: a test of memory",
    licence="None needed: nothing is read.",
    load=synthetic.load,
    by_hand="generated",
)
_SYNTHETIC_LOG = Source(
    name="synthetic_log",
    description="A generated log of any size with heavy-tailed users: a test of preparation",
    licence="None needed: nothing is read.",
    load=synthetic_log.load,
    by_hand="generated",
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        merrec.SOURCE,
        movielens.SOURCE,
        kuairand.SOURCE,
        ebnerd.SOURCE,
        amazon.SOURCE,
        yambda.SOURCE,
        taobao.SOURCE,
        lastfm.SOURCE,
        complete_journey.SOURCE,
        _INTERACTIONS,
        _SYNTHETIC,
        _SYNTHETIC_LOG,
    )
}


def describe_sources() -> str:
    """Return the registry for a terminal."""
    return "\n\n".join(source.describe() for source in SOURCES.values())
