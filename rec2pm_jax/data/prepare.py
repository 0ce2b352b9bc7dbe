"""Preparation: a source's interactions become a dataset directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from rec2pm_jax.data import filters, writer
from rec2pm_jax.data.dataset import FORMAT_VERSION, read_info
from rec2pm_jax.data.histories import TIE_RULES, Histories, build_histories, content_hash
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.schema import Interactions
from rec2pm_jax.data.sources import SOURCES
from rec2pm_jax.data.splits import SPLIT_RULES
from rec2pm_jax.errors import UserError, nearest

_LENGTH_QUANTILES = {"min": 0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1}


def prepare(options: PrepareOptions) -> tuple[dict, bool]:
    """Prepares a dataset.

    Returns:
      The contents of `dataset.json`, and whether anything was written (false when `output_dir`
      already holds this very dataset).

    Raises:
      UserError: unknown source or option, unreadable input, nothing left after the filters, or an
        output directory that holds something else.
    """
    if options.source not in SOURCES:
        raise UserError(
            f"--source={options.source} is unknown; choose one of {', '.join(SOURCES)}."
            f"{nearest(options.source, SOURCES)}"
        )
    if options.shards < 0:
        raise UserError(f"--shards must be >= 0, got {options.shards}.")
    target = Path(options.output_dir)
    _check_target(target, options.overwrite)
    interactions = SOURCES[options.source](options)
    ties = options.ties or interactions.ties
    if ties not in TIE_RULES:
        raise UserError(f"--ties={ties} is unknown; choose one of {', '.join(TIE_RULES)}.")
    events, dropped = filters.apply_filters(
        pl.concat(interactions.frames()), options.min_item_count, options.min_user_events
    )
    items = filters.vocabulary(events, interactions.items)
    histories, event_types = build_histories(events, items, ties, options.seed)
    _check_times(histories, interactions.has_times)
    info = _describe(
        dataclasses.replace(options, ties=ties),
        interactions,
        histories,
        items,
        event_types,
        {**interactions.dropped, **dropped},
    )
    if target.exists() and _holds(target, info["content_hash"]):
        return info, False
    if target.exists() and any(target.iterdir()) and not options.overwrite:
        raise UserError(
            f"{target} already holds another dataset; choose another --output_dir or add "
            "--overwrite."
        )
    with writer.replacing(target) as directory:
        shards = writer.write_sequences(directory, histories, options.shards, options.progress)
        writer.write_tables(directory, histories, items, interactions.ground_truth)
        writer.write_info(directory, {**info, "shards": shards})
    return {**info, "shards": shards}, True


def _check_target(target: Path, overwrite: bool) -> None:
    """Refuses early, and never deletes a directory that is not a prepared dataset."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UserError(f"--output_dir={target} is a file; choose a directory.")
    if any(target.iterdir()) and not (target / writer.INFO_FILE).is_file():
        raise UserError(
            f"--output_dir={target} is not empty and holds no prepared dataset; choose another "
            "directory" + (" (--overwrite replaces prepared datasets only)." if overwrite else ".")
        )


def _holds(target: Path, expected: str) -> bool:
    try:
        return read_info(target)["content_hash"] == expected
    except UserError:
        return False


def _check_times(histories: Histories, has_times: bool) -> None:
    if not has_times:
        return
    first, last = int(histories.times.min()), int(histories.times.max())
    if last - first > np.iinfo(np.int32).max:
        raise UserError(
            f"Timestamps span {last - first} seconds, more than int32 holds (68 years): from "
            f"{first} to {last}. Are they in milliseconds? Convert them to seconds."
        )


def _describe(
    options: PrepareOptions,
    interactions: Interactions,
    histories: Histories,
    items: pl.DataFrame,
    event_types: list[str],
    dropped: dict[str, int],
) -> dict:
    lengths = histories.lengths
    return {
        "format_version": FORMAT_VERSION,
        "source": options.source,
        "item_level": interactions.item_level,
        "users": len(histories.users),
        "items": items.height,
        "events": len(histories.ids),
        "lengths": {
            name: int(np.quantile(lengths, q, method="inverted_cdf"))
            for name, q in _LENGTH_QUANTILES.items()
        },
        "users_with_one_event": int(np.sum(lengths == 1)),
        "filters": {
            "min_item_count": options.min_item_count,
            "min_user_events": options.min_user_events,
            "rule": filters.RULE,
        },
        "dropped_rows": dropped,
        "notes": dict(interactions.notes),
        "ties": {"rule": options.ties, "seed": options.seed, "text": TIE_RULES[options.ties]},
        "split_rules": list(SPLIT_RULES),
        "has_times": interactions.has_times,
        "time_origin": int(histories.times.min()),
        "event_types": event_types,
        "ground_truth": interactions.ground_truth is not None,
        "content_hash": content_hash(histories, items, event_types, interactions.has_times),
    }


def summary(info: dict) -> str:
    """A few readable lines about a prepared dataset."""
    lengths = info["lengths"]
    dropped = ", ".join(f"{n:,} by {reason}" for reason, n in info["dropped_rows"].items() if n)
    lines = [
        f"{info['source']} ({info['item_level']}): {info['users']:,} users, "
        f"{info['items']:,} items, {info['events']:,} events",
        f"events per user: median {lengths['median']:,}, 90 % {lengths['p90']:,}, "
        f"maximum {lengths['max']:,}",
        f"rows dropped: {dropped or 'none'}",
        f"ties: {info['ties']['text']}",
        f"content hash: {info['content_hash'][:16]}",
    ]
    if info["users_with_one_event"]:
        lines.insert(
            2,
            f"{info['users_with_one_event']:,} users have a single event: kept, but neither "
            "trained on nor evaluated",
        )
    return "\n".join(lines)
