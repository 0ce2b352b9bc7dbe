"""Who is missed, by whom, and how soon: three ends of a roll call in one process."""

from __future__ import annotations

import queue
import threading

import pytest

from rec2pm_jax.errors import UserError
from rec2pm_jax.train import roll_call
from rec2pm_jax.train.roll_call import RollCall


class End(RollCall):
    def __init__(self, index):
        self.heard = queue.Queue()
        super().__init__(index, lambda process, what: self.heard.put((process, what)))

    def vanish(self):
        """What the operating system does to a killed process."""
        self._over.set()
        for connection in self._connections:
            connection.close()


@pytest.fixture
def ends():
    made = [End(index) for index in range(3)]
    port = made[0].listen()
    for end in made[1:]:
        end.join("localhost", port)
    for end in made[1:]:  # names travel first
        while not all(peer.name.startswith("process 0 (") for peer in end._connections.values()):
            pass
    while sum(peer.name[8:9] in "12" for peer in made[0]._connections.values()) < 2:
        pass
    yield made
    for end in reversed(made):
        end.leave()


@pytest.mark.parametrize("victim", [0, 2])
def test_everybody_hears_who_vanished(ends, victim):
    ends[victim].vanish()
    for index in {0, 1, 2} - {victim}:
        process, what = ends[index].heard.get(timeout=10)
        assert process.startswith(f"process {victim} (")
        assert "vanished" in what


def test_an_error_is_told_apart(monkeypatch, ends):
    monkeypatch.setattr(roll_call, "GRACE_S", 0.1)
    ends[1].leave(failed=True)
    for index in (0, 2):
        process, what = ends[index].heard.get(timeout=10)
        assert process.startswith("process 1 (") and what == roll_call.FAILED


def test_a_silent_process_is_lost(monkeypatch, ends):
    """Its machine has no power, so nobody closes its connections."""
    monkeypatch.setattr(roll_call, "_BEAT_S", 0.1)
    ends[1]._tell = lambda line: None
    monkeypatch.setattr(roll_call, "SILENCE_S", 1.5)
    process, what = ends[2].heard.get(timeout=10)
    assert process.startswith("process 1 (") and "no sign of life" in what


def test_who_leaves_is_not_missed_and_process_0_goes_last(monkeypatch, ends):
    monkeypatch.setattr(roll_call, "PATIENCE_S", 0.5)
    ends[1].leave()
    ends[0].leave()  # does not wait for ever
    ends[2]._over.wait(0.5)
    assert all(end.heard.empty() for end in ends)


def test_process_0_waits_for_the_others(ends):
    leaving = threading.Thread(target=ends[0].leave)
    leaving.start()
    ends[1].leave()
    leaving.join(0.5)
    assert leaving.is_alive()
    ends[2].leave()
    leaving.join(5)
    assert not leaving.is_alive()


def test_nobody_there():
    with pytest.raises(UserError, match="cannot reach process 0 at localhost:1 .*connect to each"):
        End(1).join("localhost", 1)
