"""A model that `launch.export` wrote, without rec2pm_jax: its programs, items, ids and times.

Put this file beside `serve_exported.py`, or beside your own program.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import sys
import zoneinfo
from pathlib import Path
from typing import Any

import jax
import numpy as np

Waiting = tuple[int, int, int]  # item id, seconds since the time origin, event-type id
LATEST_TIME = 100_000_000_000  # seconds since 1970; larger numbers are milliseconds
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
        self.categories: dict[str, list[int]] = {}
        for i, row in enumerate(rows, 1):
            if row.get("category") is not None:
                self.categories.setdefault(row["category"], []).append(i)
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


def parse_id(value: Any, field: str) -> str:
    """Return the text of an id: 7, 7.0 and "7" are the same."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if not isinstance(value, str) or not value:
        raise Rejected("malformed", f'"{field}" must hold a string or integer, got {value!r}')
    return value
