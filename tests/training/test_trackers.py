"""The adapters of MLflow and Weights & Biases: with fakes, a database file, and in offline mode."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from rec2pm_jax.config import Config
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.errors import UserError
from rec2pm_jax.training.observers import RunInfo
from rec2pm_jax.training.trackers import open_tracker

IDENTITY = {
    "config": to_dict(Config()),
    "config_hash": "c",
    "data_hash": "d",
    "data_path": "data",
    "git_commit": "g",
}
SUMMARY = {"stopped_by": "steps", "best_step": 4, "best": {"ndcg@10": 0.5}}


@pytest.mark.parametrize("text", ["mlfow", "tensorboard:x", "", "wandb2:project"])
def test_unknown_trackers_are_refused(text):
    with pytest.raises(UserError, match=f"--tracker={text}: choose mlflow, mlflow:URI, wandb or"):
        open_tracker(text)


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_a_missing_package_is_named(monkeypatch, kind):
    monkeypatch.delitem(sys.modules, f"rec2pm_jax.training.trackers.{kind}_tracker", raising=False)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(UserError, match=rf"needs {kind}: pip install 'rec2pm_jax\[{kind}\]'"):
        open_tracker(kind)


def train(tracker, workdir, rows, start=0, summary=None):
    """Make the calls of a run."""
    tracker.start(RunInfo(workdir, start, IDENTITY))
    try:
        for stream, step, values in rows:
            tracker.write(stream, step, values, {"tokens_per_s": 7.0, "unknown": None})
        if summary:
            tracker.finish(summary)
    finally:
        tracker.close()


class FakeWandb:
    """What the adapter calls of wandb."""

    class Error(Exception):
        pass

    def __init__(self):
        self.inits, self.rows, self.codes, self.fails = [], [], [], False

    def Settings(self, **settings):
        return settings

    def init(self, **options):
        if self.fails:
            raise self.Error("no API key\nconfigured")
        self.inits.append(options)
        return SimpleNamespace(
            id=options["id"] or "w1",
            define_metric=lambda *_, **__: None,
            log=self.rows.append,
            summary={},
            finish=lambda exit_code: self.codes.append(exit_code),
        )


@pytest.fixture
def fake_wandb(monkeypatch):
    pytest.importorskip("wandb")
    from rec2pm_jax.training.trackers import wandb_tracker

    fake = FakeWandb()
    monkeypatch.setattr(wandb_tracker, "wandb", fake)
    return fake


def test_wandb_continues_its_run_and_sends_rows_once(tmp_path, fake_wandb):
    tracker = open_tracker("wandb:team/shop")
    train(tracker, tmp_path, [("train", 2, {"loss": 1.0}), ("validation", 4, {"ndcg@10": 0.25})])
    again = [("validation", 4, {"ndcg@10": 0.25}), ("validation", 8, {"ndcg@10": 0.5})]
    train(open_tracker("wandb:team/shop"), tmp_path, again, 2, SUMMARY)
    first, second = fake_wandb.inits
    assert (first["entity"], first["project"], first["id"]) == ("team", "shop", None)
    assert first["config"]["train.steps"] == 2000 and first["config"]["data_hash"] == "d"
    assert second["id"] == "w1" and second["resume"] == "allow"
    assert [row["step"] for row in fake_wandb.rows] == [2, 4, 8]
    assert fake_wandb.rows[0] == {"step": 2, "train/loss": 1.0, "train/tokens_per_s": 7.0}
    assert fake_wandb.codes == [1, 0]  # stopped, then complete


def test_wandb_without_an_account_is_one_line(tmp_path, fake_wandb):
    fake_wandb.fails = True
    with pytest.raises(UserError, match=r"Weights & Biases: no API key configured .*offline"):
        train(open_tracker("wandb"), tmp_path, [])


@pytest.mark.slow
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "train").mkdir()
    train(open_tracker("wandb:shop"), tmp_path, [("validation", 4, {"ndcg@10": 0.25})])
    run_id = json.loads((tmp_path / "train/wandb.json").read_text())["run_id"]
    rows = [("validation", 4, {"ndcg@10": 0.25}), ("validation", 8, {"ndcg@10": 0.5})]
    train(open_tracker("wandb:shop"), tmp_path, rows, 0, SUMMARY)
    folders = [f.name for f in (tmp_path / "train/wandb").glob("offline-run-*")]
    assert folders and all(name.endswith(run_id) for name in folders)
    assert any((tmp_path / "train/wandb" / name).glob("*.wandb") for name in folders)


@pytest.mark.slow
def test_mlflow_in_a_database_file(tmp_path, monkeypatch):
    """Rows arrive once in one run; a stopped run is KILLED, and FINISHED at its end."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    uri, workdir = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "shop"
    train(
        open_tracker(f"mlflow:{uri}"),
        workdir,
        [("train", 2, {"loss": 1.0}), ("validation", 4, {"ndcg@10": 0.25})],
    )
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("rec2pm_jax").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED" and run.info.run_name == "shop"
    assert run.data.params["train.steps"] == "2000" and run.data.tags["data_hash"] == "d"
    rows = [("validation", 4, {"ndcg@10": 0.25}), ("validation", 8, {"ndcg@10": 0.5})]
    train(open_tracker(f"mlflow:{uri}"), workdir, rows, 2, SUMMARY)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.tags["best_step"] == "4"
    history = client.get_metric_history(run.info.run_id, "validation/ndcg_10")
    assert [(point.step, point.value) for point in history] == [(4, 0.25), (8, 0.5)]
    client.delete_run(run.info.run_id)
    with pytest.raises(UserError, match="mlflow.json; remove that file"):
        train(open_tracker(f"mlflow:{uri}"), workdir, [])


class FakeMlflow:
    """A client of MLflow, for what the adapter calls."""

    def __init__(self, tracking_uri=None):
        self.uri = tracking_uri

    status, metrics, broken = [], [], False

    def get_experiment_by_name(self, name):
        return None

    def create_experiment(self, name):
        return "1"

    def create_run(self, experiment, run_name):
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    def log_batch(self, run_id, metrics=(), params=(), tags=()):
        if self.broken:
            raise OSError("connection refused\nby peer")
        self.metrics.extend((m.key, m.step, m.value) for m in metrics)

    def update_run(self, run_id, status):
        self.status.append((run_id, status))

    def set_tag(self, run_id, name, value):
        pass

    def set_terminated(self, run_id, status):
        self.status.append((run_id, status))


def test_mlflow_continues_its_run_and_sends_rows_once(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from rec2pm_jax.training.trackers import mlflow_tracker

    monkeypatch.setattr(mlflow_tracker, "MlflowClient", FakeMlflow)
    rows = [("validation", 4, {"ndcg@10": 0.25})]
    train(open_tracker("mlflow:http://host"), tmp_path, rows)
    rows.append(("validation", 8, {"ndcg@10": 0.5}))
    train(open_tracker("mlflow:http://host"), tmp_path, rows, 2, SUMMARY)
    assert [m for m in FakeMlflow.metrics if "ndcg" in m[0]] == [
        *(("validation/ndcg_10", 4, 0.25), ("validation/ndcg_10", 8, 0.5)),
    ]
    names = [("m1", status) for status in ("KILLED", "RUNNING", "FINISHED")]
    assert FakeMlflow.status == names
    monkeypatch.setattr(FakeMlflow, "broken", True)
    with pytest.raises(UserError, match="row of step 9: connection refused. The same command"):
        train(open_tracker("mlflow:http://host"), tmp_path, [("train", 9, {})])
