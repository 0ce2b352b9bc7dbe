"""`launch.compare --runs`: two runs on the same targets, paired over users."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from launch.experiments import comparison
from rec2pm_jax.config import Config, DataConfig, LossConfig
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.bootstrap import paired_bootstrap
from rec2pm_jax.evaluation.metrics import summarize
from rec2pm_jax.evaluation.record import Evaluation
from rec2pm_jax.evaluation.spec import Measures
from rec2pm_jax.runs import Result
from tests.launch.test_flag_fuzz import TINY, directory, finish, launch  # noqa: F401 (a fixture)

USERS = np.repeat(np.arange(40), 2)


def evaluation(seed, users=USERS, worst=30):
    rank = np.random.default_rng(seed).integers(1, worst, len(users))
    return Evaluation(
        method="rec2pm",
        memory="overwrite",
        backbone="sasrec",
        dataset="fake",
        data_hash="hash",
        split="test",
        protocol="last_10",
        user=users,
        position=np.arange(len(users)),
        event=np.arange(len(users)),
        rank=rank,
        swapped_ranks={},
        metrics=summarize(rank, users),
        skipped_users=0,
        wall_s=1.0,
        state_bytes_per_user=64,
        state_bookkeeping_bytes=8,
    )


@pytest.fixture
def runs(monkeypatch):
    """{workdir: run}; a run's evaluation is given."""
    made = {
        name: SimpleNamespace(
            config=Config(), dataset=SimpleNamespace(content_hash="hash"), found=evaluation(seed)
        )
        for seed, name in enumerate(("runs/a", "runs/b", "runs/c"))
    }

    def evaluate_run(run, spec):
        cutoffs = spec.measures.cutoffs
        metrics = summarize(run.found.rank, run.found.user, cutoffs=cutoffs)
        found = dataclasses.replace(run.found, cutoffs=cutoffs, metrics=metrics)
        return Result(found, found.record(config={}, step=7))

    monkeypatch.setattr(comparison, "load_run", lambda name, data: made[name])
    monkeypatch.setattr(comparison, "evaluate_run", evaluate_run)
    return made


def test_each_pair_is_compared_over_users(runs):
    results = comparison.compare_runs(list(runs))
    expected = paired_bootstrap(runs["runs/a"].found.user_ndcg, runs["runs/c"].found.user_ndcg)
    pair = results[0].record["paired"]["runs/c"]
    assert pair == {"difference": list(expected.difference), "ratio": list(expected.ratio)}
    text = comparison.format_runs(results)
    lines = [line for line in text.splitlines() if "paired over users" in line]
    assert [line.split(":")[0] for line in lines] == [
        "runs/a - runs/b",
        "runs/a - runs/c",
        "runs/b - runs/c",
    ]
    assert "rec2pm_o     7" in text


def test_runs_are_compared_at_the_cutoffs_that_are_asked_for(runs):
    results = comparison.compare_runs(list(runs), measures=Measures((3, 7)))
    text = comparison.format_runs(results)
    table = text[text.index("precision") :].splitlines()[2:8]
    assert [line.split()[1] for line in table] == ["3", "7"] * 3
    for row, line in zip(results, table[::2], strict=True):
        assert f"{100 * row.record['metrics']['map@3']:.2f}" in line


def test_a_run_without_any_hit_has_a_difference_and_no_ratio(runs):
    runs["runs/b"].found = dataclasses.replace(runs["runs/b"].found, rank=np.full(len(USERS), 1000))
    results = comparison.compare_runs(["runs/a", "runs/b"])
    pair = results[0].record["paired"]["runs/b"]
    assert pair["ratio"] is None and pair["difference"][1] > 0
    assert "ratio" not in comparison.format_runs(results)
    json.dumps([row.record for row in results], allow_nan=False)


def test_runs_with_other_targets_are_refused(runs):
    with pytest.raises(UserError, match="at least two different runs"):
        comparison.compare_runs(["runs/a", "runs/a"])
    runs["runs/b"].config = Config(data=DataConfig(protocol="leave_one_out"))
    with pytest.raises(UserError, match="runs/a and runs/b differ in config.data.protocol"):
        comparison.compare_runs(["runs/a", "runs/b"])
    runs["runs/b"].config = Config(loss=LossConfig(target_types="buy"))
    with pytest.raises(UserError, match="runs/a and runs/b differ in target types: None and buy"):
        comparison.compare_runs(["runs/a", "runs/b"])
    assert len(comparison.compare_runs(["runs/a", "runs/b"], target_types="buy")) == 2
    runs["runs/b"].config = Config()
    runs["runs/b"].dataset.content_hash = "other"
    with pytest.raises(UserError, match="runs/a and runs/b differ in data"):
        comparison.compare_runs(["runs/a", "runs/b"])
    runs["runs/c"].found = evaluation(2, USERS[2:])
    with pytest.raises(UserError, match="runs/a and runs/c have other held-out events"):
        comparison.compare_runs(["runs/a", "runs/c"])


@pytest.mark.slow
def test_from_the_command_line(directory):  # noqa: F811
    fields = [f"--config.{name}={value}" for name, value in (TINY | {"train.seed": 1}).items()]
    train = ("launch.train", "--config=base", *fields, "--data=data", "--workdir=second")
    out = finish(launch(directory, *train))
    assert "tensorboard --logdir=second/train/tensorboard" in out and "devices    1 of" in out
    out = finish(launch(directory, "launch.compare", "--runs=run,second", "--json=pair.json"))
    assert "run - second: " in out and "devices: " in out
    first, second = json.loads((directory / "pair.json").read_text())
    assert list(first["paired"]) == ["second"] and list(second["paired"]) == ["run"]
    process = launch(directory, "launch.compare", "--data=data")
    _, err = process.communicate()
    assert process.returncode == 1 and "give --runs=RUN,RUN" in err and "Traceback" not in err
