"""Callbacks and trackers of a run: what they are told, and that a resumed run continues with them."""

from __future__ import annotations

import json

import jax
import pytest

from rec2pm_jax.config import Config, OptimConfig, TrainConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.training import checkpoint
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.loop import train_on
from rec2pm_jax.training.observers import Observers
from rec2pm_jax.training.preemption import Preempted
from rec2pm_jax.training.trackers.tracked_run import TrackedRun
from rec2pm_jax.training.training_run import TrainingData
from tests.helpers.train_fakes import FakeMethod, assert_same_run, fake_validation, make_iterator


@pytest.fixture(autouse=True)
def _load_fakes(monkeypatch):
    monkeypatch.setattr(checkpoint, "make_method", FakeMethod)


def run(workdir, callbacks=(), trackers=(), steps=12):
    config = Config(
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=3),
        train=TrainConfig(steps=steps, batch_size=4, log_every=5, eval_every=4, checkpoint_every=3),
    )
    data = TrainingData(make_iterator(4), "data")
    method = FakeMethod(config, noise=0.1)
    return train_on(
        *(config, data, method, workdir, fake_validation),
        observers=Observers(callbacks, trackers),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    run(workdir)
    return workdir


def rows(workdir, stream):
    return [json.loads(line) for line in (workdir / f"train/{stream}.jsonl").open()]


class FakeTracker:
    """Keeps rows by the id of a run, as a server does."""

    def __init__(self):
        self.runs, self.calls = {}, []

    def start(self, run):
        self.tracked = TrackedRun(run.workdir, "fake", "here", run.step)
        if not self.tracked.run_id:
            self.tracked.begin(f"run{len(self.runs)}")
        self.calls.append(("start", self.tracked.run_id, run.step))

    def write(self, stream, step, values, volatile=None):
        if self.tracked.is_new(stream, step):
            assert not volatile or "tokens_per_s" in volatile
            received = self.runs.setdefault(self.tracked.run_id, {})
            received.setdefault(stream, []).append({"step": step, **values})
            self.tracked.mark_sent(stream, step)

    def finish(self, summary):
        self.calls.append(("finish", summary["steps"]))

    def close(self):
        self.calls.append(("close",))


@pytest.mark.smoke
def test_callbacks_see_validations_and_checkpoints(tmp_path, undisturbed):
    events, copies = [], []

    def note(event):
        events.append(event)
        if event.kind == "validation":
            copies.append(jax.device_get(event.params))

    run(tmp_path, [note])
    validations = [event for event in events if event.kind == "validation"]
    assert [event.step for event in validations] == [4, 8, 12]
    logged = [row["ndcg@10"] for row in rows(tmp_path, "validation")]
    assert [event.metrics["ndcg@10"] for event in validations] == logged
    assert [fake_validation(params)["ndcg@10"] for params in copies] == logged
    saved = [event.step for event in events if event.kind == "checkpoint"]
    assert saved[0] == 3 and saved[-1] == 12 and {3, 6, 9, 12} <= set(saved)
    assert events[-1].best["ndcg@10"] == max(logged) and events[-1].params is None
    assert events[-1].workdir == tmp_path and events[-1].config.train.steps == 12
    assert_same_run(tmp_path, undisturbed)


def test_an_error_of_a_callback_ends_the_run_and_its_checkpoint_stands(tmp_path, undisturbed):
    def fail(event):
        if event.step == 8:
            raise ZeroDivisionError("of the callback")

    with pytest.raises(ZeroDivisionError, match="of the callback"):
        run(tmp_path, [fail])
    run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.parametrize(("kind", "step"), [("validation", 8), ("checkpoint", 9)])
def test_a_callback_can_stop_a_run_which_then_continues_exactly(tmp_path, undisturbed, kind, step):
    """Step 8 is not the best one, so it would not be saved otherwise."""

    def stop(event):
        if event.kind == kind and event.step >= 8:
            event.request_stop()

    with pytest.raises(Preempted, match=f"stopped by a callback after step {step}, which is saved"):
        run(tmp_path, [stop])
    _, _, meta = load_for_inference(tmp_path, "latest")
    assert meta["step"] == step and meta["best_step"] == 4
    run(tmp_path)
    assert_same_run(tmp_path, undisturbed)


def test_a_stop_at_the_end_leaves_the_run_complete(tmp_path):
    def stop(event):
        if event.step == 12:
            event.request_stop()

    assert run(tmp_path, [stop])["steps"] == 12


def test_a_tracker_receives_every_row_once_in_one_run(tmp_path):
    tracker = FakeTracker()

    def fail(event):
        if event.step == 8 and event.kind == "validation":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, [fail], [tracker])
    assert [row["step"] for row in tracker.runs["run0"]["validation"]] == [4, 8]  # 8 is not saved
    run(tmp_path, trackers=[tracker])
    assert list(tracker.runs) == ["run0"]
    for stream in ("train", "validation"):
        assert tracker.runs["run0"][stream] == rows(tmp_path, stream)
    assert tracker.calls == [
        *(("start", "run0", 0), ("close",)),
        *(("start", "run0", 6), ("finish", 12), ("close",)),
    ]


def test_an_error_of_a_tracker_ends_the_run(tmp_path):
    class Broken(FakeTracker):
        def write(self, stream, step, values, volatile=None):
            raise UserError("no server")

    tracker = Broken()
    with pytest.raises(UserError, match="no server"):
        run(tmp_path, trackers=[tracker])
    assert tracker.calls[-1] == ("close",)


def test_another_place_has_another_run_and_damage_is_named(tmp_path):
    TrackedRun(tmp_path, "fake", "here", 0).begin("one")
    assert TrackedRun(tmp_path, "fake", "here", 0).run_id == "one"
    assert TrackedRun(tmp_path, "fake", "there", 0).run_id == ""
    (tmp_path / "train/fake.json").write_text("{")
    with pytest.raises(UserError, match="fake.json is damaged .* remove it"):
        TrackedRun(tmp_path, "fake", "here", 0)
