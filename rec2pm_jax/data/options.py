"""Options of a preparation: every field is the flag of `launch.prepare` with the same name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# How files of `--source=interactions` are read. A dataset remembers these for logs appended later.
READING: dict[str, Any] = {
    "user_column": "user",
    "item_column": "item",
    "time_column": "timestamp",
    "type_column": "",
    "order_column": "",
    "title_column": "",
    "category_column": "",
    "time_unit": "",
    "time_zone": "",
    "time_format": "",
    "separator": "",
    "id_type": "text",
    "drop": (),
    "keep": (),
}


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of a preparation. An empty string means "not given".

    For the options of `READING`, None means the value of the dataset that a log is appended to, or
    else the default.

    Attributes:
      source: what to read, a name in `sources.SOURCES`.
      output_dir: directory of the prepared dataset.
      input: file, directory or pattern of the source.
      items: file that describes the items, see `item_table.py`; empty: none.
      item: what counts as an item, for sources that offer a choice (product or product_type).
      min_item_count: drop items with fewer events.
      min_user_events: drop users with fewer events.
      keep_dropped: keep the events that these two filters drop, so that appended logs count them.
      ties: order of a user's events of equal time: shuffle or keep; empty: the source's own rule.
      seed: seed of the tie shuffle and of the synthetic sources.
      shards: number of record files; 0: one per `write.SHARD_EVENTS` events.
      overwrite: replace another prepared dataset in `output_dir`.
      force: append a log although the dataset holds it already.
      progress: show progress bars.
      max_memory: memory for events, for example 4GiB or 500MB.
      user_column, item_column, time_column: columns of `--source=interactions`.
      type_column: its column of the event type; empty: none.
      order_column: its column that orders events of equal time; empty: none.
      title_column, category_column: its columns that describe the item of a row; empty: none.
      time_unit: s, ms, us, ns or iso; empty: detected.
      time_zone: zone of times that state none; empty: UTC.
      time_format: how times are written, for example "%m/%d/%Y %H:%M"; empty: numbers or ISO 8601.
      separator: between the columns of CSV files; empty: detected.
      id_type: text, or int, which reads the text "7.0" as the id 7.
      drop: leave out rows where a column matches, "COLUMN=REGEX" each.
      keep: leave out rows where a column does not match, "COLUMN=REGEX" each.
      skip_invalid: leave out rows that cannot be used.
      max_invalid_share: of all rows, that `skip_invalid` may leave out.
      synthetic_users, synthetic_items: sizes of the synthetic sources.
      synthetic_length: events per user.
      synthetic_taste_events: first events of a user that show the hidden taste.
      variant: which download of a source, for example 25m for movielens.
      download_dir: directory for downloads; empty: nothing is downloaded.
    """

    source: str
    output_dir: str
    input: str = ""
    items: str = ""
    item: str = ""
    min_item_count: int = 0
    min_user_events: int = 0
    keep_dropped: bool = False
    ties: str = ""
    seed: int = 0
    shards: int = 0
    overwrite: bool = False
    force: bool = False
    progress: bool = True
    max_memory: str = "4GiB"
    user_column: str | None = None
    item_column: str | None = None
    time_column: str | None = None
    type_column: str | None = None
    order_column: str | None = None
    title_column: str | None = None
    category_column: str | None = None
    time_unit: str | None = None
    time_zone: str | None = None
    time_format: str | None = None
    separator: str | None = None
    id_type: str | None = None
    drop: Sequence[str] | None = None
    keep: Sequence[str] | None = None
    skip_invalid: bool = False
    max_invalid_share: float = 0.1
    synthetic_users: int = 4000
    synthetic_items: int = 400
    synthetic_length: int = 80
    synthetic_taste_events: int = 10
    variant: str = ""
    download_dir: str = ""

    def with_defaults(self, known: Mapping[str, Any] | None = None) -> PrepareOptions:
        """Return options in which no option of `READING` is None.

        Args:
          known: how the dataset's logs were read; None: the defaults.

        >>> PrepareOptions("interactions", "data", user_column="uid").with_defaults().time_column
        'timestamp'
        """
        defaults = READING | dict(known or {})
        absent = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **absent)

    @property
    def reading(self) -> dict[str, Any]:
        """How the log is read: the options of `READING`, as JSON holds them."""
        values = {name: getattr(self, name) for name in READING}
        return {n: list(v) if isinstance(v, list | tuple) else v for n, v in values.items()}
