"""Exported programs equal the model for any batch, and the manifest describes them."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.stream.catalogue import Catalogue
from rec2pm_jax.stream.compute import batches, compiled
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.export.directory import write_export
from rec2pm_jax.stream.export.programs import (
    DENIED,
    collect_weights,
    export_functions,
    flatten_state,
)
from rec2pm_jax.stream.options import EngineOptions
from rec2pm_jax.stream.recommender import Recommender
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.typing import Events
from tests.helpers.stream import (
    RECENT,
    SEGMENT,
    ListSource,
    make_config,
    make_data,
    make_recommender,
    random_params,
    raw_events,
    save_run,
)

ROOT = Path(__file__).parents[2]
META = {"step": 7, "data_hash": "d"}
K = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), categories=3)


def load(folder):
    """Return (manifest, weights, functions by name), loaded as a server without this package does."""
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = dict(np.load(folder / "weights.npz"))
    functions = {
        name: jax.jit(jax.export.deserialize(bytearray((folder / f["file"]).read_bytes())).call)
        for name, f in manifest["functions"].items()
    }
    return manifest, weights, functions


def inputs_of(recommender, users, events, times, width, time_name):
    """Return the inputs of an exported function for a batch of user states."""
    padded, valid = batches.pad_events(events, width)
    state = jax.tree.map(lambda *rows: np.stack(rows), *(u.state for u in users))
    fields = {n: x for n, x in padded._asdict().items() if x is not None}
    fields |= flatten_state(state) | {"length": valid.sum(axis=1).astype(np.int32)}
    if time_name == "request_time":
        fields["denied"] = np.zeros((len(users), DENIED), np.int32)
        fields["blocked"] = np.zeros(recommender.method.num_items + 1, bool)
    return fields if times is None else fields | {time_name: times}


CASES = [
    ("rec2pm", "overwrite", "sasrec", "none", 0),
    ("rec2pm", "append", "hstu", "position_time", 2),
    pytest.param(("rec2pm", "append", "sasrec", "none", 2), marks=pytest.mark.slow),
    pytest.param(("recent", "overwrite", "sasrec", "none", 0, True), marks=pytest.mark.slow),
    pytest.param(("kv_mask", "append", "sasrec", "none", 0), marks=pytest.mark.slow),
    ("full", "overwrite", "sasrec", "none", 0),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exported_functions_equal_the_model(case, dataset, tmp_path):
    recommender = make_recommender(dataset, make_config(*case))
    method, params = recommender.method, recommender.params
    write_export(recommender, META, tmp_path / "out", K)
    manifest, weights, functions = load(tmp_path / "out")
    assert set(functions) == ({"read"} if case[0] == "full" else {"update", "read"})

    # 12 users with some updates, one with events but no memory yet, one without events.
    users = [recommender.observe(recommender.new_user(), raw_events(dataset, i)) for i in range(12)]
    users.append(recommender.observe(recommender.new_user(), raw_events(dataset, 0, 1)))
    users.append(recommender.new_user())
    updates = {u.state.segments.item() for u in users}
    assert updates == {0} if case[0] == "full" else {0} < updates
    timed = recommender.catalogue.uses_times
    for batch in (users, users[-1:]):
        asked = np.arange(len(batch), dtype=np.int32) + 10_000 if timed else None
        inputs = inputs_of(
            recommender,
            batch,
            [u.pending for u in batch],
            asked,
            method.read_length,
            "request_time",
        )
        check_described(manifest["functions"]["read"]["inputs"], inputs, len(batch))
        found = functions["read"](weights, inputs)
        check_described(manifest["functions"]["read"]["outputs"], found, len(batch))
        check_filters(recommender, functions["read"], weights, inputs, batch, asked)
        for row, user in enumerate(batch):
            time = None if asked is None else int(asked[row]) + dataset.time_origin
            expected = recommender.recommend(user, K, time=time)
            scores = [r.score for r in expected]
            if not user.events:  # the program returns the counts of popular items
                scores = recommender.popular_items[0][:K]
            np.testing.assert_allclose(found["scores"][row], scores, rtol=1e-5, atol=1e-5)
            names = [recommender.catalogue.items.raw_ids[i] for i in found["items"][row]]
            assert names == [r.item for r in expected]
        assert not np.asarray(found["vectors"])[[not u.events for u in batch]].any()

        if "update" in functions:
            segments = [jax.tree.map(lambda x: x[:SEGMENT], u.pending) for u in batch]
            whole = [
                s if len(s.ids) == SEGMENT else jax.tree.map(lambda x: x[:0], s) for s in segments
            ]
            inputs = inputs_of(recommender, batch, whole, asked, SEGMENT, "next_time")
            check_described(manifest["functions"]["update"]["inputs"], inputs, len(batch))
            found = functions["update"](weights, inputs)
            check_described(manifest["functions"]["update"]["outputs"], found, len(batch))
            events = Events(*(inputs.get(field) for field in Events._fields))
            state = jax.tree.map(lambda *rows: np.stack(rows), *(u.state for u in batch))
            valid = np.arange(SEGMENT) < inputs["length"][:, None]
            expected = compiled.update(method, params, state, events, valid, asked)
            for field, leaf in flatten_state(expected).items():
                atol = 1e-5 if field == "memory" else 0
                np.testing.assert_allclose(found[field], leaf, rtol=0, atol=atol)
            kept = inputs["length"] == 0
            for field, leaf in flatten_state(state).items():
                np.testing.assert_array_equal(np.asarray(found[field])[kept], leaf[kept])
            if len(batch) > 1:
                assert kept.any() and not kept.all()


def check_filters(recommender, read, weights, inputs, batch, asked):
    """The denied and blocked items are left out, and nothing else changes."""
    raw_ids = recommender.catalogue.items.raw_ids
    denied, blocked = ["i1", "i2", "i3"], ["i5", "i7"]
    inputs = inputs | {k: inputs[k].copy() for k in ("denied", "blocked")}
    inputs["denied"][0, :3] = [raw_ids.index(name) for name in denied]
    inputs["blocked"][[raw_ids.index(name) for name in blocked]] = True
    found = read(weights, inputs)
    for row, user in enumerate(batch):
        time = None if asked is None else int(asked[row]) + recommender.catalogue.time_origin
        out = denied if row == 0 else []
        expected = recommender.recommend(user, K, out, time, {"deny": blocked})
        kept = np.isfinite(found["scores"][row])
        names = [raw_ids[i] for i in np.asarray(found["items"][row])[kept]]
        assert names == [r.item for r in expected][: len(names)]
        assert len(names) == K or not user.events  # of the popular items it knows the first K


def check_described(described, arrays, batch):
    assert set(described) == set(arrays)
    for name, array in arrays.items():
        shape = tuple(batch if size == "b" else size for size in described[name]["shape"])
        assert (shape, described[name]["dtype"]) == (array.shape, str(array.dtype)), name
        assert described[name]["meaning"]


@pytest.mark.smoke
def test_manifest_describes_the_files(dataset, tmp_path):
    config = make_config()
    recommender = make_recommender(dataset, config)
    returned = write_export(recommender, META, tmp_path / "out", 1000)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest == json.loads(json.dumps(returned))
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert (manifest["step"], manifest["data_hash"]) == (7, "d")
    assert manifest["serving"]["k"] == manifest["serving"]["items"] == dataset.num_items
    assert manifest["serving"]["recent"] == RECENT
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*manifest["files"], "manifest.json"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]  # nothing temporary is left
    weights = np.load(tmp_path / "out/weights.npz")
    assert {n: list(weights[n].shape) for n in weights} == {
        n: described["shape"] for n, described in manifest["weights"].items()
    }
    lines = (tmp_path / "out/items.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == dataset.items.raw_ids[1:]


def test_nothing_is_overwritten_or_left_half_written(dataset, tmp_path, monkeypatch):
    recommender = make_recommender(dataset, make_config())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="is there already"):
        write_export(recommender, META, tmp_path / "out", K)
    (tmp_path / "out").rmdir()

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(UserError, match="out: no room left on its disk"):
        write_export(recommender, META, tmp_path / "out", K)
    assert not list(tmp_path.iterdir())


def test_parameters_that_diverged_are_refused(dataset, tmp_path):
    recommender = make_recommender(dataset, make_config())
    params = jax.tree.map(lambda x: x * np.nan, recommender.params)
    bad = type(recommender)(recommender.method, params, recommender.catalogue)
    with pytest.raises(UserError, match="NaN"):
        write_export(bad, META, tmp_path / "out", K)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_large_catalogue_is_exported_for_any_batch():
    method = make_method(make_config(), 70_000)
    params = random_params(method)
    catalogue = Catalogue(Numbered(method.num_items), (), 0, uses_times=False, uses_types=False)
    recommender = Recommender(method, params, catalogue)
    weights = collect_weights(recommender, K)
    program = export_functions(method, weights, K)["read"].program
    read = jax.jit(jax.export.deserialize(bytearray(program)).call)
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        ids = rng.integers(1, 70_001, (batch, method.read_length)).astype(np.int32)
        state = jax.tree.map(np.asarray, method.init_state(params, batch))
        length = np.full(batch, method.read_length, np.int32)
        more = {"denied": np.zeros((batch, DENIED), np.int32), "blocked": np.zeros(70_001, bool)}
        found = read(weights, flatten_state(state) | {"ids": ids, "length": length} | more)
        valid = np.ones(ids.shape, bool)
        readout = jax.jit(method.read)(params, state, Events(ids), valid)
        scores, items = method.best(params, readout, K)
        np.testing.assert_allclose(found["scores"], scores, rtol=1e-5)
        np.testing.assert_array_equal(found["items"], items)


class Numbered:
    """Items named by their ids, each seen once."""

    def __init__(self, count: int):
        self.raw_ids = ["", *map(str, range(1, count + 1))]
        self.counts = np.ones(count + 1, np.int64)


def awkward_lines(dataset) -> list:
    """Return lines of all kinds: ids as numbers, ISO times, excluded items, and what is skipped."""
    lines: list = []
    for user in (3, 5, 8):
        history = raw_events(dataset, user)
        for n, event in enumerate(history):
            lines.append({"user": user if n % 2 else str(user), **event, "seq": n})
            if n % 4 == 0:
                seen = [e["item"] for e in history[: n + 1]]
                lines.append({"user": float(user), "recommend": 5, "exclude": [*seen[-6:], 99]})
                lines.append({"user": user, "recommend": 2, "time": event["time"] + 100})
                lines.append({"user": user, "recommend": 25, "exclude_seen": True})
                lines.append({"user": user, "recommend": 2, "candidates": seen[:3]})
                group = {"items": seen[:2], "categories": ["c1"]}
                lines.append({"user": user, "recommend": 4, "allow": group, "deny": seen[1:2]})
                lines.append({"user": user, "recommend": 4, "deny": group})
        iso = f"{datetime.datetime.fromtimestamp(event['time'], datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
        lines.append({"user": user, **event, "time": iso})
        lines.append({"user": user, **event, "seq": 0})
        lines.append({"user": user, **event, "time": event["time"] - 1})
        lines.append({"user": user, "recommend": 4, "time": iso})
    lines += [{"user": "new", "recommend": 5, "exclude": ["i1", "i2"]}, b"\n", b"[]\n", b"{\n"]
    lines += [{"user": 3, **event, "item": unknown} for unknown in (7, "none", None, 1.5, "", True)]
    lines += [{"user": 3, **event, "time": t} for t in (2**45, "noon", -1, 2**33, [1])]
    lines += [{"user": user, **event} for user in (None, [3], -3, "")]
    lines += [{"user": 3, "recommend": k} for k in (0, 10**9, "3", 2.5)]
    lines += [{"user": 3, "recommend": 2, "exclude": out} for out in ("i1", [None], [[1]])]
    unknown = ({"categories": ["none"]}, ["none"], {"item": []}, [None], "i1", {"items": "i2"})
    lines += [{"user": 3, "recommend": 2, "allow": group} for group in unknown]
    lines += [
        {"user": 3, "recommend": 2, "candidates": []},
        {"user": 3, "recommend": 2, "deny": []},
    ]
    return [*lines, {"user": 3, "recommend": 3}]


@pytest.mark.slow
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[-1]], ids=str)
def test_example_serves_where_the_package_cannot_be_imported(case, dataset, tmp_path):
    config = make_config(*case)
    save_run(tmp_path / "run", dataset, config)
    command = [sys.executable, "-m", "launch.export", f"--workdir={tmp_path / 'run'}"]
    command += [f"--output={tmp_path / 'out'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "read for cpu, cuda, tpu" in done.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr

    lines = awkward_lines(dataset)
    engine = Engine(make_recommender(dataset, config), MemoryStore(), EngineOptions(seen="items"))
    answers: list[str] = []
    source = ListSource(
        line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
    )
    summary = run_stream(engine, source, answers.append)
    expected = [json.loads(line) for line in answers]
    assert summary.skipped.total() > 8

    # Alone in a folder, where importing the package fails.
    example = shutil.copy(ROOT / "examples/serve_exported.py", tmp_path)
    shutil.copy(ROOT / "examples/exported_model.py", tmp_path)
    for package in ("rec2pm_jax", "launch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise ImportError('not installed')")
    environment = {n: x for n, x in os.environ.items() if n != "PYTHONPATH"}

    def serve():
        text = b"".join(source.lines).decode()
        command = [sys.executable, str(example), str(tmp_path / "out")]
        return subprocess.run(
            command, input=text, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    served = serve()
    assert served.returncode == 0, served.stderr
    found = [json.loads(line) for line in served.stdout.splitlines()]
    for answer in (*found, *expected):
        for item in answer["items"]:
            item["score"] = item["score"] and pytest.approx(item["score"], abs=1e-4)
    assert found == expected
    for reason, count in summary.skipped.items():
        assert f"skipped {count} lines: {reason}" in served.stderr

    with open(tmp_path / "out/weights.npz", "r+b") as file:
        file.seek(1000)
        file.write(b"torn")
    damaged = serve()
    assert damaged.returncode == 1 and "weights.npz is damaged" in damaged.stderr
