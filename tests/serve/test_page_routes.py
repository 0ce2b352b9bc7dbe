"""The routes of the page, over a served engine."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs pip install 'rec2pm_jax[serve]'")
from starlette.testclient import TestClient

from rec2pm_jax.serve.admission import Admission
from rec2pm_jax.serve.app import make_app
from rec2pm_jax.serve.engine_thread import EngineThread
from rec2pm_jax.serve.metrics import ServiceMetrics
from rec2pm_jax.serve.page_routes import FILES, open_page
from rec2pm_jax.serve.service import Service
from rec2pm_jax.stream.driver import Driver, Intervals
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events, save_run

PAGE = Path(__file__).parents[2] / "rec2pm_jax/serve/page"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def served(dataset, tmp_path_factory):
    """Yield a client of a service with the page, and the dataset's user with the most events."""
    run = tmp_path_factory.mktemp("runs") / "long"
    save_run(run, dataset, make_config("full", types=2, times=True))
    made = make_recommender(dataset, make_config(types=2, times=True))
    model = dataclasses.replace(made, dataset=dataset)
    options = EngineOptions(known_users=True, worker=Worker())
    engine = Engine(model, MemoryStore(), options)
    page = open_page(engine, [str(run)])
    thread = EngineThread(Driver(engine, Intervals(commit_s=float("inf"))))
    thread.start()
    admission = Admission(10)
    service = Service(thread, admission, swapper=Mock(), metrics=ServiceMetrics(thread, admission))
    with TestClient(make_app(service, page)) as client:
        yield client, dataset.user(int(np.argmax(dataset.lengths)))
    thread.stop()


def test_the_page_is_served_and_loads_nothing_from_elsewhere(served):
    client, _ = served
    for path, name in FILES.items():
        response = client.get(path)
        assert response.status_code == 200 and response.text == (PAGE / name).read_text()
        assert "default-src 'self'" in response.headers["content-security-policy"]
        assert not re.findall(r"(?:https?:)?//[\w.-]+\.\w+", response.text), name
    assert {file.name for file in PAGE.iterdir()} == set(FILES.values())


def test_the_page_is_in_the_wheel():
    project = tomllib.loads((PAGE.parents[2] / "pyproject.toml").read_text())
    assert "serve/page/*" in project["tool"]["setuptools"]["package-data"]["rec2pm_jax"]


def test_an_event_changes_what_is_shown(served, dataset):
    client, name = served
    about = client.get("/model").json()
    assert about["items"] == dataset.num_items and about["users"] == len(dataset)
    assert about["uses_times"] and about["event_types"] == dataset.event_types

    before = client.get("/history", params={"user": name, "limit": 3}).json()
    raw = raw_events(dataset, dataset.user_index(name))
    assert before["events"] == len(raw) and len(before["last_events"]) == 3
    assert [event["item"] for event in before["last_events"]] == [f["item"] for f in raw[:-4:-1]]

    request = {"user": name, "recommend": 4, "time": before["last_time"] + 60}
    columns = client.post("/compare", json=request).json()["columns"]
    assert [column["name"] for column in columns] == [
        "memory and recent events",
        "memory only",
        "recent events only",
        "full history (long)",
    ]
    assert [len(column["items"]) for column in columns] == [4] * 4
    answer = client.post("/recommend", json=request).json()
    assert [i["item"] for i in answer["items"]] == [i["item"] for i in columns[0]["items"]]

    added = {"user": name, "item": columns[0]["items"][0]["item"], "type": about["event_types"][0]}
    assert client.post("/events", json=added | {"time": request["time"]}).json()["accepted"] == 1
    after = client.get("/history", params={"user": name}).json()
    assert after["events"] == before["events"] + 1
    assert after["last_events"][0]["item"] == added["item"]
    newer = client.post("/compare", json=request).json()["columns"]
    changed = [old["items"] != new["items"] for old, new in zip(columns, newer, strict=True)]
    assert changed == [True, False, True, True], "the memory alone waits for its next update"


def test_its_routes_are_described(served):
    client, name = served
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/model", "/users", "/items", "/history", "/compare"} < paths.keys()
    for path in ("/model", "/users", "/items", f"/history?user={name}"):
        described = paths[path.partition("?")[0]]["get"]["responses"]["200"]
        schema = described["content"]["application/json"]["schema"]
        assert client.get(path).json().keys() == schema["properties"].keys()
    plain = make_app(client.app.state.service)  # --nopage
    with TestClient(plain) as other:
        assert "/model" not in other.get("/openapi.json").json()["paths"]


def test_searches(served, dataset):
    client, name = served
    users = client.get("/users", params={"search": name, "limit": 1}).json()["users"]
    assert users[0]["user"] == name
    items = client.get("/items", params={"search": dataset.items.titles[3]}).json()["items"]
    assert dataset.items.raw_ids[3] in [row["item"] for row in items]
    assert client.get("/items", params={"search": "<script>"}).json() == {"items": []}


@pytest.mark.parametrize(
    ("method", "path", "given", "message"),
    [
        ("GET", "/history", {}, '"user" is missing'),
        ("GET", "/history", {"user": "x" * 500}, "longer than 480 bytes"),
        ("GET", "/history", {"user": "1", "limit": "many"}, '"limit" must be 1 to 1000'),
        ("GET", "/users", {"limit": "0" * 5000}, '"limit" must be 1 to 1000'),
        ("GET", "/items", {"limit": "-1"}, '"limit" must be 1 to 1000'),
        ("POST", "/compare", [], "not a JSON object"),
        ("POST", "/compare", {"recommend": 3}, '"user" is missing'),
        ("POST", "/compare", {"user": "1", "recommend": 10**6}, "between 1 and the"),
        ("POST", "/compare", {"user": "1", "recommend": "ten"}, "must be a whole number"),
        ("POST", "/compare", {"user": ["1"]}, '"user" must hold a string'),
        ("POST", "/compare", {"user": "1", "time": "soon"}, '"time" must be seconds'),
    ],
)
def test_bad_input_gets_one_sentence(served, method, path, given, message):
    client, _ = served
    fields = {"params": given} if method == "GET" else {"json": given}
    response = client.request(method, path, **fields)
    assert response.status_code == 422 and message in response.json()["error"]
    assert client.post("/compare", content=b"{").status_code == 400
