"""Item tables of a running stream: new items get ids that stay, and content scores them."""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.nn.item_features import init_content
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.events import Event
from rec2pm_jax.stream.live_items import POLL_S, LiveItems
from rec2pm_jax.stream.load import make_recommender
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.training.item_content import training_content
from tests.helpers.stream import ListSource, make_config, make_data, random_params, save_run

FEATURES = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A recommender whose items have a category each, made of random parameters with content."""
    dataset = make_data(tmp_path_factory.mktemp("data"), categories=4)
    config = make_config("rec2pm")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, item_features=FEATURES)
    )
    params = random_params(make_method(config, dataset.num_items))
    content = training_content(config, dataset)
    params = init_content(jax.random.key(3), params, FEATURES, content)
    # Content counts for much.
    weights = jax.tree.map(lambda a: 30 * a, params["item_content"])
    return make_recommender(config, params | {"item_content": weights}, dataset)


class Table:
    """A file of items and the clock that the watcher reads."""

    def __init__(self, directory):
        self.path, self.seconds = directory / "items.csv", 0.0

    def write(self, *rows: str) -> None:
        self.path.write_text("\n".join(["id,title,category", *rows]) + "\n")
        self.seconds += POLL_S

    def open(self, model, store=None) -> LiveItems:
        return LiveItems(str(self.path), model, store or MemoryStore(), now=lambda: self.seconds)


@pytest.fixture
def table(tmp_path):
    return Table(tmp_path)


def test_new_items_are_scored_from_content(model, table):
    known = model.catalogue.num_items
    table.write("fresh,Fresh,c1", "i3,Three,c2")
    items = table.open(model)
    new = items.recommender
    assert new.catalogue.num_items == known + 1 and new.catalogue.items.id_of("fresh") == known + 1
    assert new.catalogue.items.titles[new.catalogue.items.id_of("i3")] == "Three"
    assert new.identity == model.identity
    vectors = np.asarray(new.scored_table)
    alike = [vectors[known + 1] @ vectors[i] for i in range(1, known)]
    same = [kind == "c1" for kind in model.dataset.item_table["category"][: known - 1]]
    assert np.mean(np.array(alike)[same]) > np.mean(np.array(alike)[~np.array(same)]) + 0.3
    events = [Event("u", "fresh" if n % 2 else "i1") for n in range(20)]
    engine = Engine(model, MemoryStore())
    engine.replace_items(new)
    assert engine.ingest(events).events == 20 and engine.num_unknown_items == 0
    answer = engine.recommend("u", known + 1)
    assert {r.item for r in answer.items} == set(new.known_items)


@pytest.mark.smoke
def test_a_stream_reads_the_table_when_it_changes(model, table, caplog):
    """The states stay, a bad table is reported and changes nothing, and later ids follow earlier."""
    table.write("a,,c0")
    store = MemoryStore()
    engine = Engine(model, store)
    items = table.open(model, store)
    engine.replace_items(items.recommender)
    engine.ingest([Event("u", "a"), Event("u", "i1"), Event("u", "b")])
    assert items.poll() is None and engine.num_unknown_items == 1
    table.write("b,,c0", "a,,c1")
    lines = [b'{"user": "u", "item": "b"}\n', b'{"user": "u", "recommend": 3}\n']
    written: list[str] = []
    summary = run_stream(engine, ListSource(lines), written.append, items.poll)
    assert (summary.events, summary.unknown_items, len(written)) == (1, 0, 1)
    ids = engine.get_user("u").pending.ids.tolist()
    known = model.catalogue.num_items
    assert ids[0] == known + 1 and ids[2:] == [0, known + 2]
    before = engine.recommender
    table.write("b,,c0", "b,,c1")
    with caplog.at_level(logging.WARNING):
        assert items.poll() is None
    assert "row 3" in caplog.text and engine.recommender is before
    table.path.unlink()
    table.seconds += POLL_S
    assert items.poll() is None
    assert items.notes() == [
        "--items: 2 items that training did not know, read again 1 times, 2 times it could not be used"
    ]


def test_unknown_items_look_like_the_mean_event(model):
    table = np.asarray(model.params["embedding"]["item_embedding"])
    ids = model.dataset.histories.ids
    np.testing.assert_allclose(table[0], table[ids].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_store_remembers_the_ids(model, table):
    table.write("b,,c0", "a,,c1")
    store = MemoryStore()
    first = table.open(model, store).recommender.catalogue.items
    table.write("0,,c0", "a,,c1")
    again = table.open(model, store).recommender.catalogue.items
    assert again.raw_ids[:-1] == first.raw_ids and again.raw_ids[-1] == "0"
    with pytest.raises(UserError, match="events of 3 items of an item table, such as 'a'"):
        LiveItems("", model, store)
    smaller = dataclasses.replace(model.catalogue, items=first)
    grown = dataclasses.replace(model, catalogue=smaller)  # as if "a" and "b" came to the data
    with pytest.raises(UserError, match="events of 1 items"):
        LiveItems("", grown, store)
    raw = [*first.raw_ids[:-2], "x", "y"]
    renamed = dataclasses.replace(smaller, items=SimpleNamespace(raw_ids=raw))
    other = dataclasses.replace(model, catalogue=renamed)
    with pytest.raises(UserError, match="in another order than the data"):
        LiveItems("", other, store)


def test_a_model_without_content_takes_no_table(model, table):
    table.write("a,,c0")
    plain = dataclasses.replace(model, trained_params=None)
    with pytest.raises(UserError, match=r"train it with --config.model.item_features"):
        table.open(plain)
    table.write("a,,c0", "a,,c1")
    with pytest.raises(UserError, match="row 3"):
        table.open(model)


@pytest.mark.slow
def test_a_process_reads_a_table_that_changes(tmp_path):
    """`launch.stream --items`: items come, a bad table changes nothing, a restart keeps the ids."""
    dataset = make_data(tmp_path, categories=4)
    config = make_config("rec2pm")
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, item_features=FEATURES)
    )
    save_run(tmp_path / "run", dataset, config, training_content(config, dataset))
    (tmp_path / "shop").mkdir()
    table = Table(tmp_path / "shop")
    table.write("a,Apple,c1")
    incoming, answers = tmp_path / "incoming", tmp_path / "answers.jsonl"
    incoming.mkdir()

    def append(*lines: dict) -> None:
        with open(incoming / "day.jsonl", "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)

    def wait_for(count: int) -> dict:
        """Return the answer of this number, or fail if the process ends before it."""
        for _ in range(6000):
            found = answers.read_text().splitlines() if answers.exists() else []
            if len(found) >= count:
                return json.loads(found[count - 1])
            assert process.poll() is None, process.stderr.read().decode()
            time.sleep(0.1)
        process.kill()
        raise AssertionError(f"no answer {count} in ten minutes: {process.stderr.read().decode()}")

    def start() -> subprocess.Popen:
        flags = [f"--workdir={tmp_path / 'run'}", f"--events={incoming}", f"--output={answers}"]
        flags += [f"--store={tmp_path / 'users'}", f"--items={table.path}"]
        command = [sys.executable, "-m", "launch.stream", *flags]
        return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def stop() -> str:
        process.send_signal(signal.SIGTERM)
        text = process.communicate(timeout=600)[1].decode()
        assert process.returncode == 0, text
        return text

    def ask(item: str, number: int) -> dict:
        request = {"user": "u", "recommend": 1, "time": 1000 + number, "candidates": [item]}
        append({"user": "u", "item": item, "time": 1000 + number}, request)
        return wait_for(number)

    process = start()
    try:
        first = ask("a", 1)
        assert (first["events"], first["items"][0]["title"]) == (1, "Apple")
        table.write("b,Bread,c2", "a,Avocado,c1")
        time.sleep(3 * POLL_S)
        second = ask("b", 2)
        assert (second["events"], second["items"][0]["title"]) == (2, "Bread")
        table.write("b,,c2", "b,,c3")  # refused
        time.sleep(3 * POLL_S)
        assert ask("a", 3)["items"][0]["title"] == "Avocado"
        text = stop()
        assert "row 3" in text and "2 items that training did not know" in text, text
        table.write("c,Cake,c0", "b,Bread,c2", "a,Avocado,c1")
        process = start()
        assert ask("c", 4)["events"] == 4
        assert ask("b", 5)["items"][0]["title"] == "Bread"
        assert "unknown items" not in stop()
    finally:
        process.kill()
        process.wait()
