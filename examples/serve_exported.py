"""Serve what `launch.export` wrote, without rec2pm_jax: python serve_exported.py DIR < events.jsonl

Lines, answers and the rules for skipping lines are those of `launch.stream`. Left out are stores,
workers, metrics, and batches: users are served one at a time.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import sys
import time
import zoneinfo
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np

Waiting = tuple[int, int, int]  # item id, seconds since the time origin, event-type id
LATEST_TIME = 100_000_000_000  # seconds since 1970; larger numbers are milliseconds
DAY_S = 86_400
UNKNOWN_TIME = -(2**31)  # of a request without a time
NUMBER = re.compile(r"\s*[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?\s*")
ISO = re.compile(
    r"\s*([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:[.,][0-9]+)?)?"
    r"\s*(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)?\s*"
)


class Rejected(Exception):
    """A line that cannot be used: (reason, message)."""


class ExportedModel:
    """The programs, weights and items of an exported directory."""

    def __init__(self, folder: Path):
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.serving = self.manifest["serving"]
        files = {name: (folder / name).read_bytes() for name in self.manifest["files"]}
        for name, file in self.manifest["files"].items():
            if hashlib.sha256(files[name]).hexdigest() != file["sha256"]:
                sys.exit(f"error: {folder / name} is damaged; export it again.")
        self.functions = {}
        for name, function in self.manifest["functions"].items():
            program = jax.export.deserialize(bytearray(files[function["file"]]))
            self.functions[name] = jax.jit(program.call)
        self.weights = jax.device_put(dict(np.load(folder / "weights.npz")))
        rows = [json.loads(line) for line in files["items.jsonl"].decode().split("\n")[:-1]]
        self.item_names = ["", *(row["id"] for row in rows)]
        self.titles = ["", *(row["title"] for row in rows)]
        self.item_ids = {name: i for i, name in enumerate(self.item_names) if i}
        self.unknown_items = 0  # events of items that are not in the training data
        inputs = self.manifest["functions"]["read"]["inputs"]
        self.uses_times, self.uses_types = "times" in inputs, "types" in inputs
        self.max_denied = inputs["denied"]["shape"][1]
        # How the log of the training data was read: id_type, zone and time_format.
        self.reading = {"id_type": "text", "zone": "", "time_format": ""}
        self.reading |= self.serving.get("reading", {})

    def call(
        self, name: str, state: dict, events: list[Waiting], when: int, **more: Any
    ) -> dict[str, Any]:
        """Call `update` or `read` for one user; inputs that are not given are zero, like padding."""
        fields = zip(("ids", "times", "types"), zip(*events, strict=True), strict=False)
        given = dict(fields) | state
        given |= {"length": len(events), "next_time": when, "request_time": when} | more
        inputs = {}
        for field, spec in self.manifest["functions"][name]["inputs"].items():
            values = np.ravel(given.get(field, 0))
            shape = [1 if size == "b" else size for size in spec["shape"]]
            inputs[field] = np.zeros(shape, spec["dtype"])
            inputs[field].reshape(-1)[: values.size] = values
        return jax.device_get(self.functions[name](self.weights, inputs))

    def parse_id(self, value: Any, field: str) -> str:
        """Return the text of an id: 7, 7.0 and "7" are the same, and "7.0" with the id type int."""
        text = parse_id(value, field)
        return re.sub(r"^([0-9]+)\.0+$", r"\1", text) if self.reading["id_type"] == "int" else text

    def parse_time(self, value: Any) -> int | None:
        """Return whole seconds since 1970 of a number, or of text as the log had it."""
        if value is None:
            return None
        try:
            if isinstance(value, str):
                value = self._parse_text(value)
            if not isinstance(value, bool) and 0 <= value < LATEST_TIME + 1:
                return int(value)
        except (ValueError, TypeError, OverflowError):
            pass
        form = self.reading["time_format"] or "ISO 8601"
        raise Rejected("malformed", f'"time" must be seconds since 1970 or {form}, got {value!r}')

    def _parse_text(self, text: str) -> float:
        """Return seconds since 1970; ValueError if the text is no time."""
        form, zone = self.reading["time_format"], self.reading["zone"]
        if not form and NUMBER.fullmatch(text):
            return float(text)
        if form:
            moment = datetime.datetime.strptime(text.strip(), form)
        elif match := ISO.fullmatch(text):
            date, clock, offset = match.groups()
            stamp, form = f"{date} {clock or '00:00'}:00"[:19], "%Y-%m-%d %H:%M:%S"
            if offset:
                offset = f"{offset.replace(':', '')}00"[:5] if offset[0] in "+-" else "+0000"
                stamp, form = stamp + offset, form + "%z"
            moment = datetime.datetime.strptime(stamp, form)
        else:
            raise ValueError
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zoneinfo.ZoneInfo(zone) if zone else datetime.UTC)
            again = moment.astimezone(datetime.UTC).astimezone(moment.tzinfo)
            if again.replace(tzinfo=None) != moment.replace(tzinfo=None):
                raise ValueError  # skipped when summer time began
        return moment.timestamp()

    def encode_time(self, when: int | None) -> int:
        """Return seconds since the time origin; 0 if the model does not use times."""
        if not self.uses_times:
            return 0
        if when is None:
            raise Rejected("malformed", '"time" is missing, and this model uses the time of events')
        if abs(when - self.serving["time_origin"]) >= 2**31:
            raise Rejected(
                "malformed", f'"time" {when} is more than 68 years from the training data\'s'
            )
        return when - self.serving["time_origin"]

    def encode_type(self, kind: Any) -> int:
        """Return the id of an event type; 0 if the model does not use types."""
        kind = None if kind is None else parse_id(kind, "type")
        if not self.uses_types:
            return 0
        if kind is None:
            raise Rejected("malformed", '"type" is missing, and this model uses event types')
        if kind not in self.serving["event_types"]:
            raise Rejected("unknown event type", f"event type {kind!r} is unknown")
        return self.serving["event_types"].index(kind) + 1


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
        blocked = np.zeros(len(model.item_ids) + 1, bool)
        if (candidates := line.get("candidates")) is not None:
            blocked[:] = True
            for item in candidates:
                name = model.parse_id(item, "candidates")
                if name not in model.item_ids:
                    raise Rejected("unknown item", f'"candidates": item {name!r} is unknown')
                blocked[model.item_ids[name]] = False
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


def parse_id(value: Any, field: str) -> str:
    """Return the text of an id: 7, 7.0 and "7" are the same."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or not value:
        raise Rejected("malformed", f'"{field}" must hold a string or integer, got {value!r}')
    return value


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


def main() -> None:
    model = ExportedModel(Path(sys.argv[1]))
    users: dict[str, User] = {}
    skipped: Counter[str] = Counter()
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for number, text in enumerate(sys.stdin, 1):
        if text.isspace():
            continue
        try:
            line = parse_line(model, text)
            user = users.get(line["user"]) or User()
            if "item" in line:
                user.observe(model, line)
                users[line["user"]] = user
            else:
                answer = {"user": line["user"]} | user.recommend(model, line)
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
