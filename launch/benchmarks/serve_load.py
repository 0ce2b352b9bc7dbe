"""The client of --suite=serve: a process of its own, so that it shares no interpreter with the service.

It reads a `Load` as JSON from standard input, and prints one JSON line: requests per second, statuses,
and percentiles of latency. With a rate, requests are due by the clock and latency counts
from then; else each connection sends as soon as it has its answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from typing import Any, NamedTuple

from rec2pm_jax.stream.metrics import percentiles


class Load(NamedTuple):
    """What the client sends.

    Attributes:
      port: of the service on this machine.
      path: of the requests.
      bodies: sent in turn.
      seconds: how long.
      connections: kept open.
      rate: requests per second; 0: as many as are answered.
    """

    port: int
    path: str
    bodies: list[str]
    seconds: float
    connections: int
    rate: float = 0.0


class Sent(NamedTuple):
    """What the client saw.

    Attributes:
      per_s: answers per second.
      statuses: how many answers had each status.
      latency_ms: p50, p95 and p99 of the answers with status 200; None without such answers.
    """

    per_s: float
    statuses: dict[str, int]
    latency_ms: dict[str, float] | None


def send_load(load: Load) -> Sent:
    """Run the client in a process, and return what it saw."""
    command = [sys.executable, "-m", "launch.benchmarks.serve_load"]
    done = subprocess.run(
        command, input=json.dumps(load._asdict()), text=True, check=True, stdout=subprocess.PIPE
    )
    return Sent(**json.loads(done.stdout))


async def _run(load: Load) -> Sent:
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    numbers = iter(range(sys.maxsize))
    # So that connections and the first answers are not part of the measurement.
    began = time.perf_counter() + 0.2
    end = began + load.seconds

    async def connect() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", load.port)
        await asyncio.sleep(max(0.0, began - time.perf_counter()))
        while True:
            n = next(numbers)
            due = began + n / load.rate if load.rate else time.perf_counter()
            if due >= end:
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            status = await _request(reader, writer, load.path, load.bodies[n % len(load.bodies)])
            statuses[status] += 1
            if status == "200":
                latencies.append((time.perf_counter() - due) * 1e3)
        writer.close()

    await asyncio.gather(*(connect() for _ in range(load.connections)))
    passed = time.perf_counter() - began
    return Sent(sum(statuses.values()) / passed, dict(statuses), percentiles(latencies))


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: str
) -> str:
    """Send one request and return the status of its answer."""
    content = body.encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    answer = await reader.readuntil(b"\r\n\r\n")
    lines = answer.lower().split(b"\r\n")
    [length] = [int(x.split(b":")[1]) for x in lines if x.startswith(b"content-length:")]
    await reader.readexactly(length)
    return lines[0].split()[1].decode()


def _main() -> None:
    import uvloop  # of an extra

    fields: dict[str, Any] = json.load(sys.stdin)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sent = runner.run(_run(Load(**fields)))
    print(json.dumps(sent._asdict()))


if __name__ == "__main__":
    _main()
