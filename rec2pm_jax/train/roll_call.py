"""Processes of a job notice at once when one of them is gone.

A collective whose partner was killed waits for ever, or fails without a name. So every process keeps a
connection to process 0, which the operating system closes when its owner dies and over which both
sides send a sign of life; process 0 tells the others whom it misses. A thread listens, so that it does
not matter where the main thread waits.
"""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable

from rec2pm_jax.errors import UserError

SILENCE_S = 60.0  # without a sign of life a process counts as lost
PATIENCE_S = 20.0  # process 0 waits so long for the others to leave
GRACE_S = 5.0  # for the others to find the same error themselves
FAILED = "stopped with an error (see its own messages)"
_BEAT_S = 5.0

Lost = Callable[[str, str], None]  # (which process, what happened)


class RollCall:
    """One process's end of it.

    `on_lost(process, what)` is called from the listening thread, once, when another process vanished
    (its connection broke, or it was silent) or has left with an error (`what` is FAILED).
    """

    def __init__(self, index: int, on_lost: Lost):
        self._name = f"process {index} ({socket.gethostname()}, pid {os.getpid()})"
        self._on_lost = on_lost
        self._connections: dict[socket.socket, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server: socket.socket | None = None

    def listen(self) -> int:
        """Process 0: opens a port for the others and returns it."""
        self._server = socket.create_server(("", 0))
        self._selector.register(self._server, selectors.EVENT_READ)
        self._start()
        return self._server.getsockname()[1]

    def join(self, host: str, port: int) -> None:
        """The others: connects to process 0.

        Raises:
          UserError: it cannot be reached.
        """
        try:
            connection = socket.create_connection((host, port), timeout=SILENCE_S)
        except OSError as error:
            raise UserError(
                f"{self._name} cannot reach process 0 at {host}:{port} ({error}); let the processes "
                "of a job connect to each other on any port."
            ) from error
        self._add(connection, "process 0")
        self._start()

    def leave(self, failed: bool = False) -> None:
        """Says goodbye; `failed` makes the others stop, too.

        Process 0, whose end JAX's service in the others takes for a disaster, is the last to go.
        """
        if self._server is not None and not failed:
            end = time.monotonic() + PATIENCE_S
            while self._connections and time.monotonic() < end and not self._over.is_set():
                time.sleep(0.05)
        if not self._over.is_set():
            self._over.set()
            self._tell("failed" if failed else "bye")
        with self._lock:
            for connection in self._connections:
                connection.close()
            if self._server is not None:
                self._server.close()

    def wait_for_loss(self, seconds: float = 10.0) -> None:
        """Gives the listening thread time to say whom it misses, after a collective has failed."""
        self._over.wait(seconds)
        time.sleep(1.0)  # of its message

    def _start(self) -> None:
        threading.Thread(target=self._run, name="roll call", daemon=True).start()

    def _add(self, connection: socket.socket, name: str) -> None:
        connection.settimeout(SILENCE_S)
        self._selector.register(connection, selectors.EVENT_READ)
        with self._lock:
            self._connections[connection] = _Peer(name)
        _send(connection, f"name {self._name}")

    def _run(self) -> None:
        beat = time.monotonic()
        while not self._over.is_set():
            for key, _ in self._selector.select(timeout=_BEAT_S / 5):
                if key.fileobj is self._server:
                    self._add(self._server.accept()[0], "a process")
                else:
                    self._hear(key.fileobj)
            now = time.monotonic()
            if now - beat > _BEAT_S:
                beat = now
                self._tell("alive")
            for connection, peer in list(self._connections.items()):
                if now - peer.heard > SILENCE_S:
                    self._lost(connection, f"gave no sign of life for {SILENCE_S:.0f} s")

    def _hear(self, connection: socket.socket) -> None:
        peer = self._connections[connection]
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._lost(connection, "vanished (killed, out of memory, or its machine is gone)")
            return
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + data.decode()).split("\n")
        for word, _, text in (line.partition(" ") for line in lines):
            if word == "name":
                peer.name = text
            elif word == "bye":
                self._remove(connection)
            elif word == "failed":
                self._lost(connection, FAILED)
            elif word == "lost":
                self._report(*text.split(": ", 1))

    def _lost(self, connection: socket.socket, what: str) -> None:
        name = self._connections[connection].name
        self._remove(connection)
        self._tell(f"lost {name}: {what}")
        self._report(name, what)

    def _report(self, name: str, what: str) -> None:
        if what == FAILED:
            self._over.wait(GRACE_S)
        if not self._over.is_set():
            self._over.set()
            self._on_lost(name, what)

    def _remove(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        with self._lock:
            del self._connections[connection]
        connection.close()

    def _tell(self, line: str) -> None:
        for connection in list(self._connections):
            _send(connection, line)


class _Peer:
    """Attributes: name; heard, when it last said something; rest, an unfinished line."""

    def __init__(self, name: str):
        self.name, self.heard, self.rest = name, time.monotonic(), ""


def _send(connection: socket.socket, line: str) -> None:
    try:
        connection.sendall(line.encode() + b"\n")
    except OSError:
        pass  # whoever is gone will be missed when its end is read
