"""A Redis or Valkey server in a process of its own."""

from __future__ import annotations

import shutil
import socket
import subprocess


class Server:
    """A server of the system's packages on a free port, with an append-only file."""

    def __init__(self, directory):
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        assert program, "these tests need a server: apt-get install redis-server (as .ci/run does)"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.command = [program, "--port", str(self.port), "--bind", "127.0.0.1"]
        self.command += ["--dir", str(directory), "--save", ""]
        self.command += ["--appendonly", "yes", "--appendfsync", "always"]
        self.start()

    def start(self, *more):
        self.process = subprocess.Popen([*self.command, *more], stdout=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()
