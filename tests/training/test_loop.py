"""The run as a whole: logs, validations, early stopping, and a continuation that is exact."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from rec2pm_jax.config import Config, OptimConfig, TrainConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.training import checkpoint
from rec2pm_jax.training.checkpoint import load_for_inference
from rec2pm_jax.training.loop import train_on
from rec2pm_jax.training.preemption import Preempted
from rec2pm_jax.training.training_run import TrainingData, TrainingRun
from tests.helpers.train_fakes import (
    FakeMethod,
    assert_same_run,
    fake_validation,
    is_step,
    make_iterator,
)

BATCH = 4


def config_of(**train):
    fields = {"steps": 12, "batch_size": BATCH, "log_every": 5, "eval_every": 4}
    fields |= {"checkpoint_every": 3} | train
    return Config(
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=3),
        train=TrainConfig(**fields),
    )


def run(workdir, validate=fake_validation, method=None, profile="", **train):
    config = config_of(**train)
    method = method or FakeMethod(config, noise=0.1)
    data = TrainingData(make_iterator(BATCH), "data")
    return train_on(config, data, method, workdir, validate, profile)


def rows(workdir, stream):
    return [json.loads(line) for line in (workdir / f"train/{stream}.jsonl").open()]


@pytest.fixture(autouse=True)
def _load_fakes(monkeypatch):
    monkeypatch.setattr(checkpoint, "make_method", FakeMethod)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, run(workdir)


@pytest.mark.smoke
def test_writes_logs_checkpoints_and_summary(undisturbed):
    workdir, summary = undisturbed
    log = rows(workdir, "train")
    assert [row["step"] for row in log] == [5, 10, 12]
    assert {"loss/ar", "loss/norm", "loss/total", "grad_norm", "tokens", "learning_rate"} < set(
        log[0]
    )
    assert [row["step"] for row in rows(workdir, "validation")] == [4, 8, 12]
    assert json.loads((workdir / "train/summary.json").read_text()) == summary
    assert (summary["steps"], summary["stopped_by"]) == (12, "steps")
    assert summary["best"]["ndcg@10"] == max(r["ndcg@10"] for r in rows(workdir, "validation"))
    assert list((workdir / "train/tensorboard").iterdir())


def test_rows_average_the_steps_since_the_row_before(undisturbed, tmp_path):
    run(tmp_path, log_every=1)
    single = [row["loss/ar"] for row in rows(tmp_path, "train")]
    log = rows(undisturbed[0], "train")
    np.testing.assert_allclose(log[0]["loss/ar"], np.mean(single[:5]))
    np.testing.assert_allclose(log[2]["loss/ar"], np.mean(single[10:]))


def test_profile_of_steps_after_the_warm_up(undisturbed, tmp_path, capsys):
    run(tmp_path / "run", profile=str(tmp_path / "trace"))
    assert "profile of 3 steps" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", undisturbed[0])
    [trace] = (tmp_path / "trace").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = [event["args"]["step_num"] for event in events if event.get("name") == "train"]
    assert sorted(map(int, steps)) == [3, 4, 5]


@pytest.mark.parametrize("name", ["file/trace", "file", "x" * 300])
def test_a_profile_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot write --profile="):
        run(tmp_path / "run", profile=str(tmp_path / name))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_full_disk_under_a_profile_is_one_error(tmp_path, monkeypatch):
    def full():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: trace.pb; No space left on device")

    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: (stop(), full()))
    with pytest.raises(UserError, match="Cannot write --profile=.*no room left"):
        run(tmp_path / "run", profile=str(tmp_path / "trace"))


def test_no_profile_of_too_short_a_run(tmp_path, capsys):
    run(tmp_path / "run", steps=3, profile=str(tmp_path / "trace"))
    assert "no profile: it begins after 3 steps" in capsys.readouterr().out
    assert not list((tmp_path / "trace").iterdir())


class Crash(Exception):
    pass


def crash_before(monkeypatch, name, step):
    """Makes `TrainingRun.<name>` raise once when it is called at `step`."""
    method = getattr(TrainingRun, name)

    def crash(self):
        if self.progress.step == step:
            monkeypatch.undo()
            raise Crash
        return method(self)

    monkeypatch.setattr(TrainingRun, name, crash)


@pytest.mark.parametrize(
    ("name", "step"),
    # _save at 4 and 12: the validation row is on disk and must not appear twice.
    [
        ("take_step", 1),
        ("take_step", 5),
        ("take_step", 11),
        ("_validate", 8),
        ("_save", 4),
        ("_save", 12),
    ],
)
def test_resumes_exactly_after_a_crash(undisturbed, tmp_path, name, step):
    with pytest.MonkeyPatch.context() as patch:
        crash_before(patch, name, step)
        with pytest.raises(Crash):
            run(tmp_path)
    run(tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


def test_sigterm_saves_and_the_rerun_is_exact(undisturbed, tmp_path):
    """It arrives during the validation of step 4; the step after it is saved."""

    def validate(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return fake_validation(params)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Preempted, match="after step 5, which is saved"):
        run(tmp_path, validate)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert (tmp_path / "checkpoints/5").is_dir()
    run(tmp_path)
    assert_same_run(tmp_path, undisturbed[0])


def test_falls_back_from_a_torn_checkpoint_and_continues_exactly(undisturbed, tmp_path, caplog):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "train/summary.json").unlink()
    newest = max((tmp_path / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert newest.name == "12"
    (newest / "data" / "process_0-of-1.json").write_text("")
    run(tmp_path)
    assert "is unreadable" in caplog.text
    assert_same_run(tmp_path, undisturbed[0])


def test_a_finished_run_does_nothing(undisturbed, tmp_path, capsys):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    (tmp_path / "train/summary.json").unlink()  # killed just before it was written

    def validate(params):
        raise AssertionError("a finished run must not validate")

    assert run(tmp_path, validate) == undisturbed[1]
    assert "complete: 12 steps" in capsys.readouterr().out


def test_a_finished_run_can_be_extended(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path, dirs_exist_ok=True)
    assert run(tmp_path, steps=16)["steps"] == 16


def test_early_stopping_counts_validations_without_a_better_one(tmp_path):
    scores = iter([0.1, 0.05, 0.3, 0.3, 0.2, 0.9])
    summary = run(
        tmp_path, lambda params: {"ndcg@10": next(scores)}, steps=50, eval_every=2, patience=2
    )
    assert (summary["steps"], summary["stopped_by"], summary["best_step"]) == (10, "patience", 6)
    assert load_for_inference(tmp_path)[2]["step"] == 6
    assert load_for_inference(tmp_path, "latest")[2]["step"] == 10


class Explodes(FakeMethod):
    def loss(self, params, batch, rng):
        terms = super().loss(params, batch, rng)
        value, weight = terms["ar"]
        return terms | {
            "ar": (value + jax.numpy.where(is_step(rng, 7), jax.numpy.inf, 0.0), weight)
        }


def test_stops_when_the_loss_is_not_finite(tmp_path):
    with pytest.raises(UserError, match=r"Step 8: .*loss/ar inf.*learning_rate"):
        run(tmp_path, method=Explodes(config_of()))
    assert load_for_inference(tmp_path, "latest")[2]["step"] == 6


def test_other_settings_are_refused(undisturbed):
    with pytest.raises(UserError, match="config.train.seed was 0, now 1"):
        run(undisturbed[0], seed=1)
