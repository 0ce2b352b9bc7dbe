"""The description of a prepared dataset: the contents of `dataset.json`, and a summary of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import polars as pl

from rec2pm_jax.data.event_order import TIE_RULES
from rec2pm_jax.data.histories import hash_content
from rec2pm_jax.data.info import FORMAT_VERSION
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import filters
from rec2pm_jax.data.prepare.encode import SourceFacts
from rec2pm_jax.data.splits import SPLIT_RULES

_LENGTH_QUANTILES = {"min": 0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1}


@dataclasses.dataclass(frozen=True)
class Content:
    """The content of a dataset, however it was prepared.

    Attributes:
      source: what the source states.
      users: raw ids in the order of the dataset.
      lengths: int64 [U], events of each.
      items: the item table.
      event_types: names of the type ids from 1.
      column: yields the parts of `ids`, `times` or `types` of all events.
      dropped: events dropped by each filter.
      duplicates: events that repeat another one in every column.
      first_time: the smallest time.
      order_key: whether a key finer than seconds may have ordered events of equal time.
      ground_truth: whether there is a `ground_truth.npz`.
    """

    source: SourceFacts
    users: pl.Series
    lengths: np.ndarray
    items: pl.DataFrame
    event_types: list[str]
    column: Callable[[str], Iterable[np.ndarray]]
    dropped: dict[str, int]
    duplicates: int
    first_time: int
    order_key: bool
    ground_truth: bool = False


def describe(options: PrepareOptions, content: Content) -> dict:
    """Return the contents of `dataset.json`, except for the number of shards.

    Args:
      options: with the rule for ties that was applied.
      content: what was prepared; its columns are read once.
    """
    source = content.source
    return {
        "format_version": FORMAT_VERSION,
        "source": options.source,
        "item_level": source.item_level,
        "items": content.items.height,
        **describe_lengths(content.lengths),
        "filters": {
            "min_item_count": options.min_item_count,
            "min_user_events": options.min_user_events,
            "keep_dropped": options.keep_dropped,
            "rule": filters.RULE,
        },
        "dropped_rows": {**source.dropped, **content.dropped},
        "duplicate_rows": content.duplicates,
        "notes": source.notes,
        "logs": [{"input": options.input, **source.log}],
        "reading": options.reading if options.source == "interactions" else {},
        "ties": {"rule": options.ties, "seed": options.seed, "text": TIE_RULES[options.ties]},
        "order_key": content.order_key,
        "split_rules": list(SPLIT_RULES),
        "has_times": source.has_times,
        "time_origin": content.first_time,
        "event_types": content.event_types,
        "ground_truth": content.ground_truth,
        "content_hash": hash_content(
            content.users,
            content.lengths,
            content.column,
            content.items,
            content.event_types,
            source.has_times,
        ),
    }


def describe_lengths(lengths: np.ndarray) -> dict:
    """Return the entries of `dataset.json` about the lengths of histories."""
    return {
        "users": len(lengths),
        "events": int(lengths.sum()),
        "lengths": {
            name: int(np.quantile(lengths, q, method="inverted_cdf"))
            for name, q in _LENGTH_QUANTILES.items()
        },
        "users_with_one_event": int(np.sum(lengths == 1)),
    }


def summary(info: dict) -> str:
    """Return a few lines about a prepared dataset: its sizes, and the rules that made it.

    Args:
      info: the contents of `dataset.json`.
    """
    lengths, applied = info["lengths"], info["filters"]
    dropped = ", ".join(f"{n:,} by {reason}" for reason, n in info["dropped_rows"].items() if n)
    single, repeated, late = (
        info.get(name, 0) for name in ("users_with_one_event", "duplicate_rows", "late_events")
    )
    filtered = max(applied["min_item_count"], applied["min_user_events"]) > 1
    by_log = filtered and info.get("grown_from") and not applied.get("keep_dropped")
    lines = {
        f"{info['source']} ({info['item_level']})": f"{info['users']:,} users, "
        f"{info['items']:,} items, {info['events']:,} events",
        "events per user": f"median {lengths['median']:,}, 90 % {lengths['p90']:,}, "
        f"maximum {lengths['max']:,}",
        "users with a single event": single
        and f"{single:,}; kept, but neither trained on nor evaluated",
        "rows dropped": dropped or "none",
        "duplicate rows": repeated and f"{repeated:,} repeat another in every column; kept",
        "late events": late
        and f"{late:,} appended events were older than their user's newest; sorted in by time",
        "filters": by_log
        and "new users and items are counted within each appended log, as dropped events are gone "
        "(prepare with --keep_dropped to count over all logs)",
        **{name.replace("_", " "): note for name, note in info["notes"].items()},
        "ties": info["ties"]["text"],
        "content hash": info["content_hash"][:16],
    }
    return "\n".join(f"{name}: {text}" for name, text in lines.items() if text)
