"""What a user can ask of `launch.prepare`; every field is the flag of the same name."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of a preparation. Empty strings mean "not given"."""

    source: str
    output_dir: str
    input: str = ""
    item: str = ""  # complete_journey: product | product_type
    min_item_count: int = 0
    min_user_events: int = 0
    ties: str = ""  # shuffle | keep; empty: the source's own rule
    seed: int = 0
    shards: int = 0  # 0: one per SHARD_EVENTS events
    overwrite: bool = False
    progress: bool = True
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "timestamp"
    type_column: str = ""
    synthetic_users: int = 4000
    synthetic_items: int = 400
    synthetic_length: int = 80
    synthetic_taste_events: int = 10
