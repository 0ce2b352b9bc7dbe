"""`launch.evaluate` from flags to records: heuristics, a tiny trained run, one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from launch.experiments import evaluating
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.evaluation.report import metrics_table, setting_line
from tests.helpers.evaluate_fakes import FakeDataset

DEFAULTS = {
    "workdir": "",
    "heuristic": "personal_frequency",
    "data": "dir",
    "split": "test",
    "protocol": "",
    "split_time": "",
    "validation_days": 1.0,
    "target_types": "",
    "cutoffs": [],
    "list_metrics": False,
    "slices": False,
    "memory": "",
    "checkpoint": "best",
    "devices": None,
    "max_segments": 0,
    "max_users": 0,
    "diagnostics": False,
    "window": 0,
    "half_life": 0.0,
    "request_time_known": False,
}


def baseline(monkeypatch, **flags):
    monkeypatch.setattr(evaluating, "open_dataset", lambda path: FakeDataset([30, 5, 40]))
    return evaluating.evaluate_baseline(SimpleNamespace(**DEFAULTS | flags))[0].record


def test_a_heuristic_names_what_its_protocol_needs_beside_its_name(monkeypatch):
    with pytest.raises(UserError, match="needs config.data.split_time"):
        baseline(monkeypatch, protocol="temporal")


def test_a_heuristic_names_its_setting(monkeypatch):
    record = baseline(monkeypatch, window=7)
    assert (record["method"], record["memory"]) == ("personal_frequency", "none")
    assert record["config"] == {"window": 7, "half_life": None}
    line = setting_line(record)
    for words in (
        "dataset fake",
        "split test",
        "protocol last_10",
        "2 users, 20 targets, 1 users skipped",
        "memory none",
        "seen items not masked",
        "time not used",
    ):
        assert words in line
    table = metrics_table([record])
    assert "personal_frequency (window 7)" in table
    assert f"{100 * record['metrics']['ndcg@10']:.2f}" in table


def test_a_known_request_time_stands_in_the_record_and_the_table(monkeypatch):
    record = baseline(monkeypatch, heuristic="counts_and_transitions", request_time_known=True)
    assert record["request_time_known"] is True
    assert set(record["config"]) == {"popularity_weight", "transition_weight"}
    assert "time was an input" in setting_line(record)
    assert "counts_and_transitions, request time known" in metrics_table([record])


def test_metrics_of_sets_have_columns(monkeypatch):
    record = baseline(monkeypatch)
    record["metrics"]["recall@10"] = 0.125
    assert "recall@10" in metrics_table([record]) and "12.50" in metrics_table([record])


@pytest.mark.parametrize(
    "flags", [{"memory": "overwrite"}, {"max_segments": 2}, {"diagnostics": True}]
)
def test_flags_of_models_are_refused_for_heuristics(monkeypatch, flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))} needs a trained model"):
        baseline(monkeypatch, **flags)


def test_a_heuristic_needs_data(monkeypatch):
    with pytest.raises(UserError, match="--data=DIR"):
        baseline(monkeypatch, data="")


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_records(tmp_path / "file" / "x.json", [])


def run_module(name, *flags):
    return subprocess.run(
        [sys.executable, "-m", f"launch.{name}", *map(str, flags)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_train_then_evaluate_from_the_command_line(tmp_path):
    data, other, workdir = tmp_path / "data", tmp_path / "other", tmp_path / "run"
    for seed, path in enumerate((data, other)):
        made = run_module(
            "prepare",
            "--source=synthetic",
            "--synthetic_users=30",
            "--synthetic_items=60",
            "--synthetic_length=80",
            f"--seed={seed}",
            f"--output_dir={path}",
            "--noprogress",
        )
        assert made.returncode == 0, made.stderr
    sizes = {
        "data.segment": 5,
        "data.segments": 3,
        "model.dim": 8,
        "model.layers": 1,
        "train.steps": 2,
        "train.eval_every": 1,
        "train.checkpoint_every": 1,
        "train.batch_size": 4,
    }
    trained = run_module(
        "train",
        "--config=launch/configs/base.py",
        *(f"--config.{field}={value}" for field, value in sizes.items()),
        f"--data={data}",
        f"--workdir={workdir}",
        "--compilation_cache=",
    )
    assert trained.returncode == 0, trained.stderr

    def evaluated(*flags):
        file = tmp_path / "x.json"
        done = run_module("evaluate", f"--workdir={workdir}", f"--json={file}", *flags)
        assert done.returncode == 0, done.stderr
        assert "setting: dataset synthetic" in done.stdout
        [record] = json.loads(file.read_text())
        return record

    record = evaluated("--split=validation", "--diagnostics", "--checkpoint=latest")
    assert (record["method"], record["memory"]) == ("rec2pm", "overwrite")
    assert (record["users"], record["targets"], record["step"]) == (30, 300, 2)
    assert set(record["diagnostics"]) == {"ndcg@10", "by_raw_events", "memory", "drift"}
    validations = (workdir / "train" / "validation.jsonl").read_text().splitlines()
    assert json.loads(validations[-1])["ndcg@10"] == record["metrics"]["ndcg@10"]

    append = evaluated("--memory=append", "--max_segments=4")
    assert append["state_bytes_per_user"] > append["state_used_bytes"] > 0
    assert evaluated("--memory=one_time")["memory"] == "one_time"
    assert evaluated("--protocol=leave_one_out")["targets"] == 30

    rows = tmp_path / "rows.parquet"
    flags = ("--cutoffs=5,20", "--list_metrics", "--slices", f"--per_user={rows}")
    measured = evaluated(*flags)
    assert {"map@5", "recall@20"} < set(measured["metrics"]) and rows.is_file()
    assert measured["slices"]["item"] and measured["list_metrics"]["lists"] == 300

    moved = tmp_path / "moved"
    shutil.move(data, moved)
    for flags, message in [
        ((), "no prepared dataset"),
        ((f"--data={other}",), "content hash"),
        ((f"--data={moved}", "--memory=none"), "use overwrite or one_time"),
        ((f"--data={moved}", "--protocol=last10"), "Unknown protocol 'last10'"),
        ((f"--data={moved}", "--window=5"), "belong to --heuristic"),
        (("--split=train",), "--split=train"),
        (("--heuristic=popularity",), "Pass one of --workdir"),
    ]:
        failed = run_module("evaluate", f"--workdir={workdir}", *flags)
        assert failed.returncode == 1
        assert message in failed.stderr
        errors = [x for x in failed.stderr.splitlines() if x.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in failed.stderr
