"""A service in a process of its own, and clients that check what it acknowledges."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class ServiceProcess:
    """`launch.serve` on a free port.

    Attributes:
      port: where it listens, the same after `restart`.
    """

    def __init__(self, folder: Path, *flags: str, port: int = 0):
        self.folder, self.flags, self.port = folder, flags, port
        self.log = folder / "service.log"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "launch.serve", f"--port={self.port}", *self.flags]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stderr=log, stdout=log
            )
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end:
            text = self.log.read_text()
            if "serving at http://" in text:
                self.port = int(text.split("serving at http://")[1].split()[0].rsplit(":", 1)[1])
                return
            assert self.process.poll() is None, text
            time.sleep(0.02)
        raise AssertionError(f"the service does not start: {self.log.read_text()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> str:
        """Send SIGTERM, wait, and return what the service printed."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(120) == 0, self.log.read_text()
        return self.log.read_text()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()


class CheckingClient(threading.Thread):
    """Sends numbered events of its own users, and notes which ones were acknowledged.

    With `retries`, an event without an answer is sent again until it has one. Otherwise it is left.

    Attributes:
      acknowledged: items of each user that were acknowledged, in order.
      unknown: events of each user without an answer.
      problems: answers that should not be.
    """

    def __init__(self, service: ServiceProcess, users: list[str], retries: bool):
        super().__init__(daemon=True)
        self.service, self.users, self.retries = service, users, retries
        self.acknowledged: dict[str, list[str]] = {user: [] for user in users}
        self.unknown = dict.fromkeys(users, 0)
        self.problems: list[Any] = []
        self.stopping = threading.Event()

    def run(self) -> None:
        sent = 0
        connection: http.client.HTTPConnection | None = None
        while not self.stopping.is_set():
            user, item = self.users[sent % len(self.users)], f"i{sent % 30}"
            event = {"user": user, "item": item, "time": 1_700_000_000 + sent}
            if self.retries:
                event["seq"] = sent
            while True:
                try:
                    if connection is None:
                        connection = http.client.HTTPConnection(
                            "127.0.0.1", self.service.port, timeout=60
                        )
                    # Every third body is a list, every fifth event comes with a request.
                    body = {"events": [event]} if sent % 3 == 0 else event
                    connection.request("POST", "/events", json.dumps(body))
                    response = connection.getresponse()
                    status, answer = response.status, json.loads(response.read())
                except (OSError, http.client.HTTPException, ValueError):
                    if connection is not None:
                        connection.close()
                    connection = None
                    if not self.retries:
                        self.unknown[user] += 1
                        time.sleep(0.05)
                        break
                    time.sleep(0.05)
                    if self.stopping.is_set():
                        self.unknown[user] += 1
                        return
                    continue
                if status in (429, 503):
                    time.sleep(0.05)
                    if not self.retries:
                        self.unknown[user] += 1
                        break
                    continue
                duplicate = [row["reason"] for row in answer["rejected"]] == ["duplicate"]
                if status != 200 or not (answer["accepted"] == 1 or (duplicate and self.retries)):
                    self.problems.append((status, answer, event))
                    return
                self.acknowledged[user].append(item)
                break
            sent += 1
