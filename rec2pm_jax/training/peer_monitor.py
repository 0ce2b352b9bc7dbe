"""Let the processes of a job notice at once that another one has ended.

A collective whose partner was killed waits for ever, or fails without naming it. So every process
keeps a connection to process 0. The operating system closes it when its owner dies, and both sides
send a heartbeat over it. Process 0 tells the others which process is lost. A thread listens, so that
it does not matter where the main thread waits.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable

from rec2pm_jax.errors import UserError

SILENCE_S = 60.0  # a process without a heartbeat for this long counts as lost
LEAVE_TIMEOUT_S = 20.0  # how long process 0 waits for the others to leave
ERROR_GRACE_S = 5.0  # time for the others to find the same error themselves
FAILED = "stopped with an error (see its own messages)"
_HEARTBEAT_S = 5.0

OnLost = Callable[[str, str], None]  # (which process, what happened)


class PeerMonitor:
    """One process's part of the monitoring.

    `on_lost(process, what)` is called once, from the listening thread, when another process has
    vanished (its connection broke, or it was silent) or has left with an error (`what` is FAILED).
    """

    def __init__(self, index: int, on_lost: OnLost) -> None:
        self._name = f"process {index} ({socket.gethostname()}, pid {os.getpid()})"
        self._on_lost = on_lost
        self._connections: dict[socket.socket, _Peer] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server: socket.socket | None = None

    def listen(self) -> int:
        """Open a port for the other processes and return it; for process 0."""
        self._server = socket.create_server(("", 0))
        self._selector.register(self._server, selectors.EVENT_READ)
        self._start()
        return self._server.getsockname()[1]

    def connect(self, host: str, port: int) -> None:
        """Connect to process 0; for the other processes.

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
        """Leave the job; `failed` makes the other processes stop, too.

        Process 0 is the last to leave: JAX's service in the others takes its end for a failure.
        """
        if self._server is not None and not failed:
            end = time.monotonic() + LEAVE_TIMEOUT_S
            while self._connections and time.monotonic() < end and not self._over.is_set():
                time.sleep(0.05)
        if not self._over.is_set():
            self._over.set()
            self._send_all("failed" if failed else "bye")
        with self._lock:
            for connection in self._connections:
                connection.close()
            if self._server is not None:
                self._server.close()

    def wait_for_loss(self, seconds: float = 10.0) -> None:
        """Give the listening thread time to report a lost process, after a collective failed."""
        self._over.wait(seconds)
        time.sleep(1.0)  # for its message

    def _start(self) -> None:
        """Start the listening thread."""
        threading.Thread(target=self._run, name="peer monitor", daemon=True).start()

    def _add(self, connection: socket.socket, name: str) -> None:
        """Watch a new connection, and introduce this process over it."""
        connection.settimeout(SILENCE_S)
        self._selector.register(connection, selectors.EVENT_READ)
        with self._lock:
            self._connections[connection] = _Peer(name)
        _send(connection, f"name {self._name}")

    def _run(self) -> None:
        """Listen and send heartbeats until this process leaves or another one is lost."""
        beat = time.monotonic()
        while not self._over.is_set():
            for key, _ in self._selector.select(timeout=_HEARTBEAT_S / 5):
                if key.fileobj is self._server:
                    self._add(self._server.accept()[0], "a process")
                elif isinstance(key.fileobj, socket.socket):
                    self._receive(key.fileobj)
            now = time.monotonic()
            if now - beat > _HEARTBEAT_S:
                beat = now
                self._send_all("alive")
            for connection, peer in list(self._connections.items()):
                if now - peer.heard > SILENCE_S:
                    self._lose(connection, f"gave no sign of life for {SILENCE_S:.0f} s")

    def _receive(self, connection: socket.socket) -> None:
        """Read what another process sent, line by line."""
        peer = self._connections[connection]
        try:
            data = connection.recv(4096)
        except OSError:
            data = b""
        if not data:
            self._lose(connection, "vanished (killed, out of memory, or its machine is gone)")
            return
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + data.decode()).split("\n")
        for word, _, text in (line.partition(" ") for line in lines):
            if word == "name":
                peer.name = text
            elif word == "bye":
                self._remove(connection)
            elif word == "failed":
                self._lose(connection, FAILED)
            elif word == "lost":
                process, what = text.split(": ", 1)
                self._report(process, what)

    def _lose(self, connection: socket.socket, what: str) -> None:
        """Tell the other processes, and the owner of this object, that a process is lost."""
        name = self._connections[connection].name
        self._remove(connection)
        self._send_all(f"lost {name}: {what}")
        self._report(name, what)

    def _report(self, name: str, what: str) -> None:
        """Call `on_lost`, unless this process has left by then."""
        if what == FAILED:
            self._over.wait(ERROR_GRACE_S)
        if not self._over.is_set():
            self._over.set()
            self._on_lost(name, what)

    def _remove(self, connection: socket.socket) -> None:
        """Stop watching a connection."""
        self._selector.unregister(connection)
        with self._lock:
            del self._connections[connection]
        connection.close()

    def _send_all(self, line: str) -> None:
        """Send a line to every connected process."""
        for connection in list(self._connections):
            _send(connection, line)


class _Peer:
    """Another process: its name, when it was last heard, and the unfinished line it has sent."""

    def __init__(self, name: str) -> None:
        self.name, self.heard, self.rest = name, time.monotonic(), ""


def _send(connection: socket.socket, line: str) -> None:
    """Send a line; a broken connection is noticed when its end is read."""
    with contextlib.suppress(OSError):
        connection.sendall(line.encode() + b"\n")
