"""Serve what `launch.export` wrote, without rec2pm_jax: python serve_exported.py DIR < events.jsonl

Lines are those of `launch.stream`, unchecked. Users are served one at a time; servers batch them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

Waiting = tuple[int, int, int]  # item id, seconds since the time origin, event-type id


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
        lines = files["items.jsonl"].decode().split("\n")[:-1]
        self.item_names = ["", *(json.loads(line)["id"] for line in lines)]
        self.item_ids = {name: i for i, name in enumerate(self.item_names) if i}

    def call(self, name: str, state: dict, events: list[Waiting], time: int) -> dict[str, Any]:
        """Call `update` or `read` for one user; inputs that are not given are zero, like padding."""
        fields = zip(("ids", "times", "types"), zip(*events, strict=True), strict=False)
        given = dict(fields) | state
        given |= {"length": len(events), "next_time": time, "request_time": time}
        inputs = {}
        for field, spec in self.manifest["functions"][name]["inputs"].items():
            values = np.ravel(given.get(field, 0))
            inputs[field] = np.zeros([1, *spec["shape"][1:]], spec["dtype"])
            inputs[field].reshape(-1)[: values.size] = values
        return jax.device_get(self.functions[name](self.weights, inputs))


class User:
    """One user: the state after the last update, {} before the first, and the events that wait."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}
        self.waiting: list[Waiting] = []

    def observe(self, model: ExportedModel, line: dict[str, Any]) -> None:
        """Append an event; update the memory once a segment and `recent` later events wait."""
        serving = model.serving
        time = line.get("time", 0) - serving["time_origin"]
        kind = serving["event_types"].index(line["type"]) + 1 if "type" in line else 0
        self.waiting.append((model.item_ids[line["item"]], time, kind))
        size = serving["segment"]
        if "update" in model.functions and len(self.waiting) == size + serving["recent"]:
            segment, next_time = self.waiting[:size], self.waiting[size][1]
            self.state = model.call("update", self.state, segment, next_time)
            self.waiting = self.waiting[size:]
        self.waiting = self.waiting[-serving["read_length"] :]

    def recommend(self, model: ExportedModel, line: dict[str, Any]) -> list[str]:
        """Return the best items for a request."""
        time = self.waiting[-1][1] if self.waiting else 0
        if "time" in line:
            time = line["time"] - model.serving["time_origin"]
        found = model.call("read", self.state, self.waiting, time)
        return [model.item_names[i] for i in found["items"][0][: line["recommend"]]]


def main() -> None:
    model = ExportedModel(Path(sys.argv[1]))
    users: dict[str, User] = {}
    for line in map(json.loads, sys.stdin):
        user = users.setdefault(line["user"], User())
        if "item" in line:
            user.observe(model, line)
        else:
            items = user.recommend(model, line)
            print(json.dumps({"user": line["user"], "items": items}))


if __name__ == "__main__":
    main()
