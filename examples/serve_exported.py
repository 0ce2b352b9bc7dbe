"""Serves what `launch.export` wrote, without rec2pm_jax: python serve_exported.py DIR < events.jsonl

Lines are those of `launch.stream`, unchecked. One user at a time; a server would batch them."""

import hashlib
import json
import sys
from pathlib import Path

import jax
import numpy as np

folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
data = {name: (folder / name).read_bytes() for name in manifest["files"]}
for name, file in manifest["files"].items():
    if hashlib.sha256(data[name]).hexdigest() != file["sha256"]:
        sys.exit(f"error: {folder / name} is damaged; export it again.")
serving, functions = manifest["serving"], manifest["functions"]
programs = {n: jax.export.deserialize(bytearray(data[f["file"]])) for n, f in functions.items()}
compiled = {name: jax.jit(program.call) for name, program in programs.items()}
weights = jax.device_put(dict(np.load(folder / "weights.npz")))
items = [json.loads(line) for line in data["items.jsonl"].decode().split("\n")[:-1]]
number = {item["id"]: i for i, item in enumerate(items, start=1)}
size, users = serving["segment"], {}  # user -> (state, events that wait)


def call(name, state, events, time):  # what is not given stays zero: a new user, padding
    given = dict(zip(("ids", "times", "types"), zip(*events, strict=True), strict=False))
    given |= state | {"length": len(events), "next_time": time, "request_time": time}
    inputs = {}
    for field, spec in functions[name]["inputs"].items():
        value = np.ravel(given.get(field, 0))
        inputs[field] = np.zeros([1, *spec["shape"][1:]], spec["dtype"])
        inputs[field].reshape(-1)[: value.size] = value
    return jax.device_get(compiled[name](weights, inputs))


for line in map(json.loads, sys.stdin):
    state, waiting = users.get(line["user"], ({}, []))
    if "item" in line:
        time, kinds = line.get("time", 0) - serving["time_origin"], serving["event_types"]
        kind = kinds.index(line["type"]) + 1 if "type" in line else 0
        waiting = waiting + [(number[line["item"]], time, kind)]
        if "update" in functions and len(waiting) == size + serving["recent"]:
            state, waiting = call("update", state, waiting[:size], waiting[size][1]), waiting[size:]
        users[line["user"]] = state, waiting[-serving["read_length"] :]
    else:
        last = waiting[-1][1] if waiting else 0
        time = line["time"] - serving["time_origin"] if "time" in line else last
        found = call("read", state, waiting, time)
        best = [items[i - 1]["id"] for i in found["items"][0]][: line["recommend"]]
        print(json.dumps({"user": line["user"], "items": best}))
