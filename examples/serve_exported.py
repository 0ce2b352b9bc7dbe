"""Serve what `launch.export` wrote, without rec2pm_jax: python serve_exported.py DIR < events.jsonl

Lines, answers and the rules for skipping lines are those of `launch.stream`. Left out are stores,
workers, metrics, and batches: users are served one at a time. `exported_model.py` is needed beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from exported_model import ExportedModel, Rejected, Waiting, parse_id

DAY_S = 86_400
UNKNOWN_TIME = -(2**31)  # of a request without a time


class User:
    """One user: the state after the last update, {} before the first, and the events that wait."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.waiting: list[Waiting] = []
        self.seen: set[int] = set()
        self.events = self.updates = 0
        self.last_time: int | None = None
        self.last_seq = -1

    def observe(self, model: ExportedModel, line: dict[str, Any]) -> None:
        """Append an event; update the memory once a segment and `recent` later events wait."""
        when, item, seq = (
            model.parse_time(line.get("time")),
            model.parse_id(line["item"], "item"),
            line.get("seq"),
        )
        kind = line.get("type")
        if seq is not None:
            if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq < 2**63:
                raise Rejected("malformed", f'"seq" must be a whole number below 2^63, got {seq!r}')
            if seq <= self.last_seq:
                raise Rejected("duplicate", f"seq {seq} is not above {self.last_seq}")
        if when is not None and when > time.time() + DAY_S:
            raise Rejected("far future", f"time {when} lies in the future")
        # An unknown item is kept as id 0: a read sees that something happened, and when.
        number = model.item_ids.get(item, 0)
        event = (number, model.encode_time(when), model.encode_type(kind))
        if when is not None:
            if self.last_time is not None and when < self.last_time:
                raise Rejected("out of order", f"time {when} lies before {self.last_time}")
            self.last_time = when
        self.last_seq = self.last_seq if seq is None else seq
        self.events += 1
        self.seen.add(number)
        model.unknown_items += not number
        self.waiting.append(event)
        serving = model.serving
        size = serving["segment"]
        if "update" in model.functions and len(self.waiting) == size + serving["recent"]:
            segment, next_time = self.waiting[:size], self.waiting[size][1]
            self.state = model.call("update", self.state, segment, next_time)
            self.waiting = self.waiting[size:]
            self.updates += 1
        self.waiting = self.waiting[-serving["read_length"] :]

    def recommend(self, model: ExportedModel, line: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        k, excluded, when = (
            line["recommend"],
            line.get("exclude"),
            model.parse_time(line.get("time")),
        )
        if isinstance(k, bool) or not isinstance(k, int):
            raise Rejected("malformed", f'"recommend" must be a whole number, got {k!r}')
        excluded = [] if excluded is None else excluded
        if not isinstance(excluded, list):
            raise Rejected("malformed", f'"exclude" must be a list of items, got {excluded!r}')
        if not 1 <= k <= len(model.item_ids):
            raise Rejected(
                "malformed", f"k={k}, but it must be between 1 and the {len(model.item_ids)} items"
            )
        out = {model.item_ids.get(model.parse_id(item, "exclude")) for item in excluded} - {None}
        if line.get("exclude_seen"):
            if line["exclude_seen"] not in (True, "all"):
                raise Rejected("malformed", '"exclude_seen" must be true here')
            out |= self.seen
        blocked = find_blocked(model, line)
        # The program returns so many items, and takes so many that are left out.
        if k > model.serving["k"] or len(out) > model.max_denied:
            raise Rejected(
                "malformed",
                f"`read` returns {model.serving['k']} items (launch.export --k) and leaves out "
                f"{model.max_denied}, but {k} and {len(out)} were asked for",
            )
        at = UNKNOWN_TIME if when is None else model.encode_time(when)
        more = {"denied": sorted(out), "blocked": blocked}
        found = model.call("read", self.state, self.waiting, at, **more)
        rows = zip(found["items"][0].tolist(), found["scores"][0].tolist(), strict=True)
        items = [
            {
                "item": model.item_names[i],
                "title": model.titles[i],
                "score": score if self.events else None,
            }
            for i, score in rows
            if score > -np.inf
        ][:k]
        counts = {"events": self.events, "updates": self.updates}
        counts |= {} if self.events else {"popular": True}
        return {"items": items} | counts | ({"wanted": k} if len(items) < k else {})


def find_blocked(model: ExportedModel, line: dict[str, Any]) -> np.ndarray:
    """Return what candidates, allow and deny leave out, by item id: bool [items + 1]."""
    blocked = np.zeros(len(model.item_ids) + 1, bool)
    for field, outside in (("candidates", True), ("allow", True), ("deny", False)):
        if (group := line.get(field)) is None:
            continue
        named = np.zeros_like(blocked)
        named[list_members(model, group, field)] = True
        blocked |= named ^ outside
    return blocked


def list_members(model: ExportedModel, group: Any, field: str) -> list[int]:
    """Return the ids of a group: a list of items, or {"items": [..], "categories": [..]}."""
    if field == "candidates" or not isinstance(group, dict):
        if field == "candidates" and group == []:
            raise Rejected("malformed", '"candidates" is empty; leave it out to rank all items')
        group = {"items": group}
    elif unknown := set(group) - {"items", "categories"}:
        raise Rejected("malformed", f'"{field}" has no field {min(unknown)!r}')
    lists = [group.get(name) or [] for name in ("items", "categories")]
    lists = [names if isinstance(names, list) else [names] for names in lists]
    members = []
    for item in lists[0]:
        name = model.parse_id(item, field)
        if name not in model.item_ids:
            raise Rejected("unknown item", f'"{field}": item {name!r} is unknown')
        members.append(model.item_ids[name])
    for category in (parse_id(name, field) for name in lists[1]):
        if category not in model.categories:
            raise Rejected("unknown item", f'"{field}": category {category!r} is unknown')
        members += model.categories[category]
    return members


def parse_line(model: ExportedModel, text: str) -> dict[str, Any]:
    """Return the fields of a line, with the user's id as text."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Rejected("malformed", f"not JSON ({error})") from error
    if not isinstance(line, dict):
        raise Rejected("malformed", "not a JSON object")
    if ("item" in line) == ("recommend" in line):
        raise Rejected("malformed", 'needs either "item" or "recommend"')
    return line | {"user": model.parse_id(line.get("user"), "user")}


def serve_line(model: ExportedModel, users: dict[str, User], text: str) -> dict[str, Any] | None:
    """Append an event to its user and return None, or return the answer to a request.

    Raises:
      Rejected: the line cannot be used; nothing has changed.
    """
    line = parse_line(model, text)
    user = users.get(line["user"]) or User()
    if "item" in line:
        user.observe(model, line)
        users[line["user"]] = user
        return None
    return {"user": line["user"]} | user.recommend(model, line)


def main() -> None:
    model = ExportedModel(Path(sys.argv[1]))
    users: dict[str, User] = {}
    skipped: Counter[str] = Counter()
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number, text in enumerate(sys.stdin, 1):
        if text.isspace():
            continue
        try:
            if (answer := serve_line(model, users, text)) is not None:
                print(json.dumps(answer, ensure_ascii=False), flush=True)
        except Rejected as error:
            reason, message = error.args
            skipped[reason] += 1
            if skipped[reason] <= 3:
                print(f"line {number}: {message}", file=sys.stderr)
    if model.unknown_items:
        print(f"{model.unknown_items} events of unknown items were kept", file=sys.stderr)
    for reason, count in skipped.most_common():
        print(f"skipped {count} lines: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
