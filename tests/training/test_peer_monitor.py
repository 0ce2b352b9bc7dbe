"""Lost processes are noticed by all others, and soon: three monitors in one process."""

from __future__ import annotations

import queue
import threading

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.training import peer_monitor
from rec2pm_jax.training.peer_monitor import PeerMonitor


class Monitor(PeerMonitor):
    def __init__(self, index):
        self.heard = queue.Queue()
        super().__init__(index, lambda process, what: self.heard.put((process, what)))

    def vanish(self):
        """What the operating system does to a killed process."""
        self._over.set()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def monitors():
    made = [Monitor(index) for index in range(3)]
    port = made[0].listen()
    for monitor in made[1:]:
        monitor.connect("localhost", port)
    for monitor in made[1:]:  # names travel first
        while not all(
            peer.name.startswith("process 0 (") for peer in monitor._connections.values()
        ):
            pass
    while sum(peer.name[8:9] in "12" for peer in made[0]._connections.values()) < 2:
        pass
    yield made
    for monitor in reversed(made):
        monitor.leave()


@pytest.mark.parametrize("victim", [0, 2])
def test_all_others_hear_which_process_vanished(monitors, victim):
    monitors[victim].vanish()
    for index in {0, 1, 2} - {victim}:
        process, what = monitors[index].heard.get(timeout=10)
        assert process.startswith(f"process {victim} (")
        assert "vanished" in what


def test_an_error_is_told_apart(monkeypatch, monitors):
    monkeypatch.setattr(peer_monitor, "ERROR_GRACE_S", 0.1)
    monitors[1].leave(failed=True)
    for index in (0, 2):
        process, what = monitors[index].heard.get(timeout=10)
        assert process.startswith("process 1 (") and what == peer_monitor.FAILED


def test_a_silent_process_is_lost(monkeypatch, monitors):
    """Its machine has no power, so its connections stay open."""
    monkeypatch.setattr(peer_monitor, "_HEARTBEAT_S", 0.1)
    monitors[1]._send_all = lambda line: None
    monkeypatch.setattr(peer_monitor, "SILENCE_S", 1.5)
    process, what = monitors[2].heard.get(timeout=10)
    assert process.startswith("process 1 (") and "no sign of life" in what


def test_a_process_that_leaves_is_not_lost_and_process_0_leaves_last(monkeypatch, monitors):
    monkeypatch.setattr(peer_monitor, "LEAVE_TIMEOUT_S", 0.5)
    monitors[1].leave()
    monitors[0].leave()  # does not wait for ever
    monitors[2]._over.wait(0.5)
    assert all(monitor.heard.empty() for monitor in monitors)


def test_process_0_waits_for_the_others(monitors):
    leaving = threading.Thread(target=monitors[0].leave)
    leaving.start()
    monitors[1].leave()
    leaving.join(0.5)
    assert leaving.is_alive()
    monitors[2].leave()
    leaving.join(5)
    assert not leaving.is_alive()


def test_a_process_0_that_cannot_be_reached():
    with pytest.raises(UserError, match="cannot reach process 0 at localhost:1 .*connect to each"):
        Monitor(1).connect("localhost", 1)
