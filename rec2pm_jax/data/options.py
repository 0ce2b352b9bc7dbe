"""Options of a preparation: every field is the flag of `launch.prepare` with the same name."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of a preparation. An empty string means "not given".

    Attributes:
      source: what to read, a name in `sources.SOURCES`.
      output_dir: directory of the prepared dataset.
      input: file, directory or pattern of the source.
      item: what counts as an item, for sources that offer a choice (product or product_type).
      min_item_count: drop items with fewer events.
      min_user_events: drop users with fewer events.
      keep_dropped: keep the events that these two filters drop, so that appended logs count them.
      ties: order of a user's events of equal time: shuffle or keep; empty: the source's own rule.
      seed: seed of the tie shuffle and of the synthetic sources.
      shards: number of record files; 0: one per `write.SHARD_EVENTS` events.
      overwrite: replace another prepared dataset in `output_dir`.
      progress: show progress bars.
      max_memory: memory for events, for example 4GiB or 500MB.
      user_column, item_column, time_column: columns of `--source=interactions`.
      type_column: its column of the event type; empty: none.
      order_column: its column that orders events of equal time; empty: none.
      time_unit: s, ms, us, ns or iso; empty: detected.
      time_zone: zone of times that state none; empty: UTC.
      synthetic_users, synthetic_items: sizes of the synthetic sources.
      synthetic_length: events per user.
      synthetic_taste_events: first events of a user that show the hidden taste.
      variant: which download of a source, for example 25m for movielens.
      download_dir: directory for downloads; empty: nothing is downloaded.
    """

    source: str
    output_dir: str
    input: str = ""
    item: str = ""
    min_item_count: int = 0
    min_user_events: int = 0
    keep_dropped: bool = False
    ties: str = ""
    seed: int = 0
    shards: int = 0
    overwrite: bool = False
    progress: bool = True
    max_memory: str = "4GiB"
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "timestamp"
    type_column: str = ""
    order_column: str = ""
    time_unit: str = ""
    time_zone: str = ""
    synthetic_users: int = 4000
    synthetic_items: int = 400
    synthetic_length: int = 80
    synthetic_taste_events: int = 10
    variant: str = ""
    download_dir: str = ""
