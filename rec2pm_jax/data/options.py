"""What a user can ask of `launch.prepare`; every field is the flag of the same name."""

from __future__ import annotations

import dataclasses
import re

from rec2pm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """Options of a preparation. Empty strings mean "not given"."""

    source: str
    output_dir: str
    input: str = ""
    item: str = ""  # what an item is, where a source has a choice
    min_item_count: int = 0
    min_user_events: int = 0
    keep_dropped: bool = False  # what these filters drop, for later --append
    ties: str = ""  # shuffle | keep; empty: the source's own rule
    seed: int = 0
    shards: int = 0  # 0: one per SHARD_EVENTS events
    overwrite: bool = False
    progress: bool = True
    max_memory: str = "4GiB"
    user_column: str = "user"
    item_column: str = "item"
    time_column: str = "timestamp"
    type_column: str = ""
    order_column: str = ""
    time_unit: str = ""  # s | ms | us | ns | iso; empty: detected
    time_zone: str = ""  # of times that state none; empty: UTC
    synthetic_users: int = 4000
    synthetic_items: int = 400
    synthetic_length: int = 80
    synthetic_taste_events: int = 10
    variant: str = ""  # which of a source's downloads, e.g. movielens: 1m, 20m, 25m, 32m
    download_dir: str = ""  # where to download to; empty: nothing is downloaded


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_bytes(text: str) -> int:
    """Bytes from a number with an optional suffix, e.g. 4GiB, 500MB or 1e9; UserError otherwise."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([kmg]i?)?b?", text.strip().lower())
    try:
        return int(float(match[1]) * _UNITS[match[2] or ""])
    except (TypeError, ValueError):
        raise UserError(
            f"--max_memory={text} is not a number of bytes; write for example 4GiB or 500MB."
        ) from None
