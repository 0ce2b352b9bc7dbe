"""The sources `launch.prepare` knows: name -> load(options) -> canonical interactions."""

from __future__ import annotations

from rec2pm_jax.data.sources import (
    complete_journey,
    interactions,
    movielens,
    synthetic,
    synthetic_log,
)

SOURCES = {
    "complete_journey": complete_journey.load,
    "movielens": movielens.load,
    "interactions": interactions.load,
    "synthetic": synthetic.load,
    "synthetic_log": synthetic_log.load,
}
