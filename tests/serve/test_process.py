"""The service as a process: the example of the docs, an orderly end, idle connections, workers."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.load import load_recommender
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from tests.helpers.redis_server import Server
from tests.helpers.serve_client import ROOT, CheckingClient, ServiceProcess
from tests.helpers.stream import make_config, make_data, save_run

pytestmark = pytest.mark.slow
IDLE = 10_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    save_run(folder / "run", make_data(folder), make_config(times=True))
    return folder


def test_example_of_the_docs(demo_directory, tmp_path):
    page = (ROOT / "docs" / "serving.md").read_text()
    example = re.search(r"```sh\n(python -m launch\.serve.*?)```", page, re.S)
    assert example is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = example[1].replace("localhost:8000", f"localhost:{port}")
    text = text.replace("--store", f"--port={port} --store") + "\nwait\n"
    (tmp_path / "runs").symlink_to(demo_directory / "runs")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    result = subprocess.run(
        ["bash", "-c", "set -m\n" + text],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert '{"accepted":1,"rejected":[],"committed":true}' in result.stdout, result
    assert (
        result.stdout.count('"score"') == 5 and '"last_events":[{"item":"BANANAS"' in result.stdout
    )
    assert "done: 1 events" in result.stderr
    assert list((tmp_path / "journal").glob("*.jsonl"))


def test_sigterm_answers_and_commits(folder):
    service = ServiceProcess(folder, "--workdir=run", "--store=ended", "--commit_s=0.05")
    clients = [CheckingClient(service, [f"{i}"], retries=False) for i in range(6)]
    for client in clients:
        client.start()
    time.sleep(1)
    report = service.end()
    for client in clients:
        client.stopping.set()
        client.join(60)
        assert not client.problems
    assert "Traceback" not in report and "done:" in report
    store = LmdbStore(folder / "ended")
    engine = Engine(load_recommender(folder / "run"), store)
    for client in clients:
        for user, items in client.acknowledged.items():
            # The answer to a body that had arrived came before the end.
            assert items and engine.get_user(user).events == len(items)
    store.close()


def test_sigterm_while_the_model_is_loaded(folder):
    command = [sys.executable, "-m", "launch.serve", "--workdir=run", "--port=0"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "devices" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    assert process.wait(60) != 0
    assert "serving" not in process.stderr.read()


def test_ten_thousand_idle_connections(folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < IDLE + 500:
        pytest.skip(f"the system allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service = ServiceProcess(folder, "--workdir=run", "--store=idle")
    with contextlib.ExitStack() as stack:
        for n in range(IDLE):
            idle = stack.enter_context(socket.create_connection(("127.0.0.1", service.port), 60))
            if n % 2:  # half of them have begun a request
                idle.sendall(b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        event = {"user": "busy", "item": "i1", "time": 1_600_000_000}
        assert service.call("POST", "/events", event)[1]["accepted"] == 1
        assert service.call("POST", "/recommend", {"user": "busy"})[1]["events"] == 1
        assert service.call("GET", "/health") == (200, {"status": "ok"})
    assert "Traceback" not in service.end()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_workers_over_one_server(folder, tmp_path):
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    flags = ("--workdir=run", f"--store={server.url}", "--commit_s=0.02")
    services = []
    for index in range(2):
        place = tmp_path / str(index)
        place.mkdir()
        (place / "run").symlink_to(folder / "run")
        services.append(ServiceProcess(place, *flags, f"--worker={index}/2"))
    users = [str(n) for n in range(20)]
    for turn in range(3):
        for user in users:
            owner = 0 if Worker(0, 2).owns(user) else 1
            event = {"user": user, "item": "i1", "time": 1_600_000_000 + turn, "seq": turn}
            assert services[owner].call("POST", "/events", event)[1]["accepted"] == 1
            status, answer = services[1 - owner].call("POST", "/events", event)
            assert status == 421 and f"worker {owner}/2" in answer["error"]
        services[0].kill()
        services[0].start()
        if turn == 1:  # the server goes away and comes back
            server.kill()
            server.start()
    for user in users:
        owner = 0 if Worker(0, 2).owns(user) else 1
        assert services[owner].call("GET", f"/users/{user}")[1]["events"] == 3
    for service in services:
        service.end()
    server.kill()
