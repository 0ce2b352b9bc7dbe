"""The registry: what `launch.prepare` can read, by name. A new source is a file and a line here."""

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


def listing() -> str:
    """The registry for a terminal: what, how to get it, licence, an example."""
    blocks = []
    for source in SOURCES.values():
        get = "downloads with --download_dir=DIR" if source.downloads else source.by_hand
        command = f"python -m launch.prepare --source={source.name} {source.example}"
        lines = {
            "get": get,
            "licence": source.licence,
            "page": source.page,
            "example": f"{command.strip()} --output_dir=data/{source.name}",
        }
        details = "".join(f"\n  {label:<9}{text}" for label, text in lines.items() if text)
        blocks.append(f"{source.name}: {source.description}{details}")
    return "\n\n".join(blocks)
