"""Routes of the service: the answers of the stream, and one clear sentence for bad input."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
import time

import pytest

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.serve import bodies
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.output import format_answer
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.serve_local import serve_locally
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config(times=True, types=2))


@pytest.fixture(scope="module")
def service(model):
    with serve_locally(Engine(model, MemoryStore(), EngineOptions(seen="events"))) as service:
        yield service


def event(n, user="u", **fields):
    return {"user": user, "item": f"i{n}", "time": 1_600_000_000 + n, "type": "view"} | fields


@pytest.fixture(scope="module")
def kind(dataset):
    return dataset.event_types[0]


@pytest.mark.smoke
def test_answers_are_those_of_the_stream(service, model, dataset):
    events = [{"user": "same"} | e for e in raw_events(dataset, 0)]
    half = len(events) // 2
    for body in [*events[:3], {"events": events[3:half]}, {"events": events[half:]}]:
        status, answer = service.post("/events", body)
        assert status == 200 and not answer["rejected"] and answer["committed"]
    engine = Engine(model, MemoryStore(), EngineOptions(seen="events"))
    user = model.new_user()
    user = model.observe(user, [{k: v for k, v in e.items() if k != "user"} for e in events])
    request = {"user": "same", "recommend": 4, "exclude": ["i3"], "exclude_seen": {"days": 1}}
    request |= {"deny": ["i5"], "time": events[-1]["time"]}
    status, answer = service.post("/recommend", request)
    filters = {"exclude_seen": {"days": 1}, "deny": ["i5"]}
    wanted = model.recommend(user, 4, ["i3"], request["time"], filters)
    assert status == 200
    assert [x["item"] for x in answer["items"]] == [x.item for x in wanted]
    for found, expected in zip(answer["items"], wanted, strict=True):
        assert found["score"] == pytest.approx(expected.score, abs=1e-4)
    assert answer["events"] == len(events) and answer["updates"] == model.count_updates(user)
    nobody = engine.recommend("nobody", 10)
    assert service.post("/recommend", {"user": "nobody"}) == (
        200,
        json.loads(format_answer(nobody)),
    )


def test_user(service, model, dataset):
    events = [{"user": "shown/é"} | e for e in raw_events(dataset, 1)]
    assert service.post("/events", {"events": events})[1]["accepted"] == len(events)
    status, shown = service.get("/users/shown/%C3%A9")
    assert status == 200 and shown["user"] == "shown/é" and shown["events"] == len(events)
    assert shown["updates"] > 0 and shown["pending"] == len(shown["last_events"]) > 0
    for found, sent in zip(reversed(shown["last_events"]), reversed(events), strict=False):
        assert (found["item"], found["time"], found["type"]) == (
            (sent["item"], sent["time"], sent["type"])
        )
    assert len(shown["memory_expects"]) == 10
    scores = [row["score"] for row in shown["memory_expects"]]
    assert scores == sorted(scores, reverse=True)
    status, answer = service.get("/users/nobody%20there")
    assert (status, answer) == (404, {"error": "User 'nobody there' has no events."})


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/events", b"{", 400, "not JSON"),
        ("/events", b"\xff\xfe", 400, "not JSON"),
        ("/events", b"", 400, "not JSON"),
        ("/events", b"[" * 50_000, 400, "not JSON"),
        ("/events", b'{"user": "u", "item": "i1", "time": NaN}', 400, "NaN is no JSON"),
        ("/events", [], 422, "not a JSON object"),
        ("/events", {"events": {}}, 422, '"events" must be a list'),
        ("/events", {"user": "u"}, 422, 'needs either "item" or "recommend"'),
        ("/events", {"user": "u", "recommend": 3}, 422, "POST /recommend"),
        ("/events", {"user": [], "item": "i1"}, 422, '"user" must hold a string or integer'),
        ("/events", {"user": "u" * 500, "item": "i1", "time": 1}, 422, "longer than 480 bytes"),
        ("/events", {"user": "u", "item": "i1"}, 422, '"time" is missing'),
        ("/events", {"user": "u", "item": "i1", "time": 9e9, "type": "x"}, 422, "future"),
        ("/recommend", {"recommend": 3}, 422, '"user" is missing'),
        ("/recommend", {"user": "u", "recommend": 31}, 422, "between 1 and the 30 items"),
        ("/recommend", {"user": "u", "recommend": "3"}, 422, "whole number"),
        ("/recommend", {"user": "u", "candidates": ["no"]}, 422, "item 'no' is not in"),
        ("/recommend", {"user": "u", "item": "i1", "recommend": 3}, 422, "either"),
        ("/recommend", 5, 422, "not a JSON object"),
        ("/swap", {"store": 5}, 422, '{"store": ADDRESS}'),
        ("/swap", b"", 409, "start the service with --journal"),
        ("/nothing", {}, 404, "There is no /nothing"),
        ("/health", {}, 405, "does not take POST"),
    ],
)
def test_bad_input(service, path, body, status, text):
    found, answer = service.post(path, body)
    assert found == status and text in answer["error"] and "\n" not in answer["error"]
    assert service.get("/health") == (200, {"status": "ok"})


def test_events_of_a_list_fail_one_by_one(service, kind):
    good = [event(n, "list", type=kind) for n in range(1, 4)]
    bad = [3, event(0, "list", type=kind), event(9, "list", type="no such type")]
    status, answer = service.post("/events", {"events": [*good[:2], *bad, good[2]]})
    assert status == 200 and answer["accepted"] == 3
    reasons = [(row["index"], row["reason"]) for row in answer["rejected"]]
    assert reasons == [(2, "malformed"), (3, "out of order"), (4, "unknown event type")]
    assert service.get("/users/list")[1]["events"] == 3


def test_unknown_items_are_kept(service, kind):
    body = event(1, "odd", type=kind) | {"item": "never heard of"}
    assert service.post("/events", body)[1]["accepted"] == 1
    assert service.get("/users/odd")[1]["last_events"][0]["item"] is None
    assert service.post("/recommend", {"user": "odd", "exclude": ["never"]})[0] == 200


def test_a_repeated_event_counts_once(service, kind):
    body = event(1, "again", type=kind, seq=1)
    assert service.post("/events", body)[1]["accepted"] == 1
    status, answer = service.post("/events", body)
    assert status == 200 and answer["accepted"] == 0 and answer["committed"]
    assert answer["rejected"][0]["reason"] == "duplicate"
    assert service.get("/users/again")[1]["events"] == 1


def test_too_large(service):
    status, answer = service.call("POST", "/events", b"x" * (1 << 17))
    assert status == 413 and "larger than 65536 bytes" in answer["error"]
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(b"POST /events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            raw.sendall(b"8000\r\n" + b"[" * 0x8000 + b"\r\n")
        assert b" 413 " in raw.recv(1000).split(b"\r\n")[0]


def test_a_client_that_disconnects(service, kind):
    line = json.dumps(event(1, "gone", type=kind)).encode()
    head = b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(line)
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(head + line[:-1])  # the body is never complete
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(head.replace(b"gone", b"left") + line.replace(b"gone", b"left"))
    end = time.monotonic() + 20
    while service.get("/users/left")[0] != 200 and time.monotonic() < end:
        time.sleep(0.02)
    assert service.get("/users/left")[1]["events"] == 1  # nobody waited for the answer
    assert service.get("/users/gone")[0] == 404
    admission = service.service.admission
    while admission.waiting and time.monotonic() < end:  # for the commit
        time.sleep(0.02)
    assert admission.waiting == 0 and admission.waiting_bytes == 0


def test_a_body_that_never_arrives_makes_room_for_others(service, monkeypatch):
    monkeypatch.setattr(bodies, "BODY_S", 0.2)
    head = b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as raw:
        raw.sendall(head + b"{")
        answer = b"".join(iter(lambda: raw.recv(1000), b""))  # the service closes the connection
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"The body has not arrived within 0.2 s: send it again."}')
    assert service.service.admission.waiting_bytes == 0


def test_metrics_and_description(service):
    service.post("/events", {"events": [{"user": "u"}, {"item": "i1"}]})
    status, text = service.get("/metrics")
    assert 'rec2pm_rejected_events_total{reason="malformed"}' in text
    assert status == 200 and "rec2pm_events_total" in text
    assert 'rec2pm_rejected_events_total{reason="duplicate"}' in text
    assert 'path="/users/ID",status="404"' in text and "nobody" not in text
    status, described = service.get("/openapi.json")
    assert status == 200 and set(described["paths"]) == {
        "/events", "/recommend", "/users/{user}", "/swap", "/health", "/metrics", "/openapi.json"
    }  # fmt: skip


class SlowStore(MemoryStore):
    """A store whose commits wait for permission."""

    def __init__(self):
        super().__init__()
        self.may_write, self.broken = threading.Event(), False
        self.may_write.set()

    def put(self, *contents):
        self.may_write.wait(60)
        if self.broken:
            raise UserError("The disk is full.")
        super().put(*contents)


def in_threads(calls):
    results = [None] * len(calls)

    def run(n):
        results[n] = calls[n]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    return threads, results


def test_events_are_acknowledged_after_their_commit(model, kind):
    store = SlowStore()
    with serve_locally(Engine(model, store)) as service:
        store.may_write.clear()
        body = event(1, "u", type=kind, seq=1)
        threads, results = in_threads([lambda: service.post("/events", body)] * 2)
        time.sleep(0.3)
        assert results == [None, None], "acknowledged before the commit"
        assert service.post("/recommend", {"user": "u"})[1]["events"] == 1  # reads do not wait
        store.may_write.set()
        for thread in threads:
            thread.join(20)
        assert sorted(answer["accepted"] for _, answer in results) == [0, 1]
        assert store.get(["u"]) != [None]
    with serve_locally(Engine(model, SlowStore()), ack="received") as service:
        service.thread.driver.engine.store.may_write.clear()
        status, answer = service.post("/events", body)
        assert status == 200 and answer["accepted"] == 1 and not answer["committed"]
        service.thread.driver.engine.store.may_write.set()


def test_too_much_waits(model, kind):
    store = SlowStore()
    with serve_locally(Engine(model, store), max_waiting=3) as service:
        store.may_write.clear()
        bodies = [event(1, f"u{n}", type=kind) for n in range(3)]
        threads, results = in_threads([lambda b=b: service.post("/events", b) for b in bodies])
        end = time.monotonic() + 60
        while service.service.admission.waiting < 3:
            assert time.monotonic() < end, results
            time.sleep(0.01)
        status, answer = service.post("/recommend", {"user": "u0"})
        assert status == 429 and "try again" in answer["error"]
        assert service.headers["retry-after"] == "1"
        assert service.get("/health")[0] == 200
        store.may_write.set()
        for thread in threads:
            thread.join(20)
        assert [status for status, _ in results] == [200] * 3
        assert service.post("/recommend", {"user": "u0"})[1]["events"] == 1


def test_a_store_that_cannot_write(model, kind):
    store = SlowStore()
    with serve_locally(Engine(model, store)) as service:
        store.broken = True
        status, answer = service.post("/events", event(1, "u", type=kind))
        assert (status, answer["error"]) == (503, "The disk is full.")
        assert service.get("/health") == (503, {"status": "The disk is full."})
        assert service.post("/recommend", {"user": "u"})[0] == 503
    assert store.get(["u"]) == [None]


def test_users_of_other_workers(model, kind):
    worker = Worker(0, 2)
    mine, other = "b", "a"
    if worker.owns("a"):
        mine, other = other, mine
    mine = next(u for u in map(str, range(9)) if worker.owns(u))
    other = next(u for u in map(str, range(9)) if not worker.owns(u))
    with serve_locally(Engine(model, MemoryStore(), EngineOptions(worker=worker))) as service:
        status, answer = service.post("/events", event(1, other, type=kind))
        assert status == 421 and answer["error"] == f"user '{other}' is served by worker 1/2"
        assert service.post("/recommend", {"user": other})[0] == 421
        assert service.get(f"/users/{other}")[0] == 421
        both = {"events": [event(1, u, type=kind) for u in (mine, other)]}
        status, answer = service.post("/events", both)
        assert (status, answer["accepted"]) == (200, 1)
        assert answer["rejected"][0]["index"] == 1


def test_an_id_in_a_path_is_read_as_in_a_body(model, kind):
    """With whole numbers as ids, "7.0" is the user "7", and so the worker of "7" serves it."""
    catalogue = dataclasses.replace(model.catalogue, rules=ValueRules(id_type="int"))
    whole = dataclasses.replace(model, catalogue=catalogue)
    worker = Worker(0, 2)
    mine = next(n for n in range(99) if worker.owns(str(n)) and not worker.owns(f"{n}.0"))
    with serve_locally(Engine(whole, MemoryStore(), EngineOptions(worker=worker))) as service:
        assert service.post("/events", event(1, mine, type=kind))[0] == 200
        status, found = service.get(f"/users/{mine}.0")
        assert status == 200 and found["user"] == str(mine)
