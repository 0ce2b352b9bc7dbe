"""launch.tune: its search space, its halving, and the search with runs that are only played."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

optuna = pytest.importorskip("optuna")

from launch.tuning import search as search_module  # noqa: E402
from launch.tuning.figure import draw_search  # noqa: E402
from launch.tuning.halving import (  # noqa: E402
    ERROR,
    KEPT,
    RUN,
    PromotingPruner,
    is_among_best,
    list_rungs,
)
from launch.tuning.preset_file import write_preset  # noqa: E402
from launch.tuning.results import collect_runs, find_best, write_results  # noqa: E402
from launch.tuning.search import Budget, Search, make_trial_config  # noqa: E402
from launch.tuning.space import parse_space, read_setting  # noqa: E402
from launch.tuning.study import JOURNAL, Plan, open_study  # noqa: E402
from launch.tuning.trial_process import PRESET, read_curve  # noqa: E402
from rec2pm_jax.errors import UserError  # noqa: E402
from rec2pm_jax.presets import load_preset  # noqa: E402
from rec2pm_jax.training.preemption import EXIT_PREEMPTED  # noqa: E402

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
}
RATE = "optim.learning_rate=1e-3..1e-1:log"


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            "optim.learning_rat=1..2",
            'no field optim.learning_rat. Did you mean "optim.learning_rate"',
        ),
        ("optim.learning_rate", "write FIELD=LOW..HIGH"),
        ("optim.learning_rate=", "write FIELD=LOW..HIGH"),
        ("optim.learning_rate=2..1", "2.0 must be below 1.0"),
        ("optim.learning_rate=1..1", "1.0 must be below 1.0"),
        ("optim.learning_rate=a..1", "'a' is no float"),
        ("optim.learning_rate=nan..1", "'nan' is no float"),
        ("optim.learning_rate=0..1:log", "must begin above 0"),
        ("optim.learning_rate=1e-3..1:lg", "only :log can follow"),
        ("optim.learning_rate=0..1", "config.optim.learning_rate must be > 0, got 0.0"),
        ("model.dropout=0..3", "config.model.dropout"),
        ("method.slots=1.5..4", "'1.5' is no int"),
        ("method.slots=2", "at least two different values"),
        ("method.slots=2,2", "at least two different values"),
        ("method.slots=2,,4", "'' is no int"),
        ("method.slots=0,4", "config.method.slots"),
        ("model.backbone=a..b", "of type str needs a list"),
        ("model.backbone=sasrec,hst", "config.model.backbone='hst'"),
        ("model.repeat_head=true,maybe", "'maybe' is no bool"),
        ("train.steps=10,20", "train.steps is the budget of a run"),
        ("train.seed=0,1", "best of several seeds is luck"),
        ("data.protocol=last_10,genrec", "changes what validation measures"),
        ("compute.accumulate=1,2", "changes speed, not the model"),
    ],
)
def test_a_bad_search_space_is_one_line(search, message):
    with pytest.raises(UserError, match="^--search=" + re.escape(search) + ": ") as error:
        parse_space([search], "demo", {})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_field_is_named_once():
    with pytest.raises(UserError, match="searched twice"):
        parse_space([RATE, "optim.learning_rate=1,2"], "demo", {})
    with pytest.raises(UserError, match="--config.optim.learning_rate is given, too"):
        parse_space([RATE], "demo", {"optim.learning_rate": 0.1})


def test_values_have_the_type_of_their_field():
    flags = ["loss.negatives=None,64", "model.repeat_head=true,false", "method.slots=2..8"]
    negatives, head, slots = parse_space(flags, "demo", {})
    assert negatives.corners() == (None, 64) and head.corners() == (True, False)
    assert slots.distribution == optuna.distributions.IntDistribution(2, 8)
    assert slots.contains(4) and not slots.contains(9) and not slots.contains(None)
    assert negatives.contains(None) and not negatives.contains(65)
    assert read_setting(load_preset("demo"), [slots]) == {"method.slots": 4}


@pytest.mark.smoke
def test_rungs_and_who_goes_on():
    assert list_rungs(700, 3, 3) == [78, 234, 700]
    assert list_rungs(9, 3, 3) == [1, 3, 9]
    assert list_rungs(2, 3, 3) == [1, 2] and list_rungs(50, 2, 1) == [50]
    assert is_among_best(0.1, [], 3)
    assert is_among_best(0.3, [0.1], 3) and not is_among_best(0.1, [0.3], 3)
    assert not is_among_best(0.2, [0.3, 0.1, 0.0, 0.0], 3)  # one of five
    assert is_among_best(0.2, [0.3, 0.1, 0.0, 0.0, 0.0], 3)  # two of six


def trial(values, state=optuna.trial.TrialState.PRUNED, **attributes):
    last = values[max(values)]
    return optuna.create_trial(
        state=state, value=last, intermediate_values=values, user_attrs=attributes
    )


def test_a_stopped_run_goes_on_once_worse_runs_have_arrived():
    pruner, study = PromotingPruner([1, 3, 9], 3), optuna.create_study(direction="maximize")
    complete = optuna.trial.TrialState.COMPLETE
    study.add_trial(trial({1: 0.5, 3: 0.6, 9: 0.7}, complete))
    study.add_trial(trial({1: 0.4}))
    study.add_trial(trial({1: 0.45}, **{ERROR: "failed"}))
    for value in (0.1, 0.2):
        study.add_trial(trial({1: value}))
        assert pruner.find_promotable(study) is None
    study.add_trial(trial({1: 0.3}))
    assert (
        pruner.find_promotable(study) is None
    )  # two of six: one is complete, the other has failed
    for _ in range(3):
        assert pruner.find_promotable(study) is None
        study.add_trial(trial({1: 0.0}))
    assert pruner.find_promotable(study).number == 1  # three of nine
    study.add_trial(trial({1: 0.4, 3: 0.2}, **{RUN: 1}))  # it went on, and stops at the next rung
    assert pruner.find_promotable(study) is None
    running = optuna.trial.TrialState.RUNNING
    kept = optuna.create_trial(state=running, intermediate_values={1: 0.0}, user_attrs={KEPT: True})
    assert not pruner.prune(study, kept)


class PlayedRun:
    """Stands for a training process: every poll reaches a rung, with a metric of the setting."""

    ended: list = []
    slowest = 1000  # a rung that no run reaches while it is below the number of steps

    def __init__(self, number, directory, core, flags):
        self.number, self.directory, self.core, self.pruned = number, directory, core, False
        self.log, self.seconds, self.process = directory / "log.txt", 2.0, self
        self.config = load_preset(directory / PRESET)
        self.returncode = self.signal = None
        assert self.config.train.eval_every == 1

    def poll(self):
        rate = self.config.optim.learning_rate
        if self.returncode is None:
            step = max(read_curve(self.directory), default=0)
            todo = [rung for rung in (1, 3, 9) if rung > step]
            if rate > 0.09:
                self.returncode = 1
            elif self.signal:
                self.returncode = EXIT_PREEMPTED
            elif not todo:
                self.returncode = 0
            elif todo[0] < self.slowest:
                path = self.directory / "train/validation.jsonl"
                path.parent.mkdir(exist_ok=True)
                with path.open("a") as file:
                    value = 1 / (1 + abs(rate - 0.02)) / 2 + todo[0] / 1000
                    file.write(json.dumps({"step": todo[0], "ndcg@10": value}) + "\n")
            if self.returncode is not None:
                self.ended.append((self.directory.name, self.returncode))
        return self.returncode

    def send_signal(self, number):
        self.signal = number

    def stop(self):
        self.signal = signal.SIGTERM
        while self.poll() is None:
            pass

    def last_line(self):
        return "the loss is not finite"


@pytest.fixture
def played(monkeypatch, tmp_path):
    monkeypatch.setattr(search_module, "TrialProcess", PlayedRun)
    monkeypatch.setattr(search_module, "_POLL_S", 0.0)
    monkeypatch.setattr(search_module.processes, "choose_cores", lambda workers: [0, 1])
    monkeypatch.setattr(PlayedRun, "ended", [])
    return tmp_path


def plan_of(searches=(RATE, "method.slots=2,4,8"), changes=()):
    changes = {"train.steps": 9} | dict(changes)
    dimensions = parse_space(searches, "demo", changes)
    config = load_preset("demo", changes)
    return Plan("demo", changes, config, dimensions, [1, 3, 9], 3)


def search(plan, workdir, budget, sampler="tpe"):
    study, pruner = open_study(plan, workdir, "hash", sampler, 0)
    try:
        Search(plan, study, pruner, workdir, []).run(budget)
    finally:
        write_results(plan, study, workdir, "data")
    return collect_runs(study)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_stops_most_runs_early_and_finds_a_better_setting(played, sampler):
    runs = search(plan_of(), played, Budget(runs=25), sampler)
    assert len(runs) == 25
    own = next(run for run in runs if run.is_preset)
    assert own.state == "complete" and own.setting["optim.learning_rate"] == 0.005
    best = find_best(runs)
    assert best.value > own.value
    reached = [sum(rung in run.values for run in runs) for rung in (1, 3, 9)]
    assert reached[0] > 2 * reached[1] > 2 * reached[2] > 2
    assert {run.state for run in runs} >= {"complete", "stopped"}
    failed = [run for run in runs if run.state == "failed"]
    assert all("exit code 1: the loss is not finite" == run.error for run in failed)
    # Nothing is left that should go on, and each run that stopped was asked to.
    assert sum(code == EXIT_PREEMPTED for _, code in PlayedRun.ended) >= 10

    tuned = load_preset(played / "best.py")
    assert tuned.optim.learning_rate == best.setting["optim.learning_rate"]
    assert tuned.method.slots == best.setting["method.slots"]
    assert tuned.train.eval_every == load_preset("demo").train.eval_every  # not the rungs
    records = json.loads((played / "tune.json").read_text())
    assert records["best"] == best.number and len(records["runs"]) == 25
    assert records["process_hours"] > 0 and records["data_hash"] == "hash"
    shares = records["importance"]["1"]
    assert shares["optim.learning_rate"] > shares["method.slots"]  # which plays no part here
    page = (played / "tune.md").read_text()
    assert (
        "| `optim.learning_rate` | 1e-3..1e-1:log | 0.005 |" in page and "complete, preset" in page
    )
    assert page.index("`optim.learning_rate`") < page.index("`method.slots`")
    draw_search(plan_of(), runs, played / "tune.png")
    assert (played / "tune.png").stat().st_size > 10_000


def test_a_search_resumes_with_the_runs_that_the_end_of_the_budget_interrupted(played, monkeypatch):
    monkeypatch.setattr(PlayedRun, "slowest", 3)
    runs = search(plan_of(), played, Budget(hours=1e-4))  # 0.36 s
    assert {run.state for run in runs} == {"interrupted"} and not (played / "best.py").exists()
    assert any(run.values.keys() == {1} for run in runs)
    started = {run.number for run in runs}
    monkeypatch.setattr(PlayedRun, "slowest", 1000)
    (played / JOURNAL).open("a").write('{"half a li')  # as a crash of the machine leaves it
    runs = search(plan_of(), played, Budget(runs=6))
    assert len(runs) == 6 and started <= {run.number for run in runs}
    assert {run.state for run in runs} <= {"complete", "stopped", "failed"}
    settings = [tuple(run.setting.values()) for run in runs]
    assert len(set(settings)) == 6  # the sampler does not repeat its first suggestions
    before = PlayedRun.ended.copy()
    assert search(plan_of(), played, Budget(runs=6)) == runs  # complete: nothing is started
    assert PlayedRun.ended == before


def test_a_run_that_reaches_a_rung_at_the_end_of_the_budget_stops_there(played):
    """It goes on only if it is promoted later, as a run that stops at a rung at any other time."""
    plan = plan_of([RATE])
    study, pruner = open_study(plan, played, "hash", "random", 0)
    kept = study.ask({d.field: d.distribution for d in plan.dimensions})
    kept.report(0.9, 1)
    bad = study.ask({d.field: d.distribution for d in plan.dimensions})

    class NotTrained(PlayedRun):
        def poll(self):
            self.returncode = EXIT_PREEMPTED if self.signal else None
            return self.returncode

    run = NotTrained.__new__(NotTrained)
    run.number, run.directory, run.core = bad.number, played / "runs/0001", 0
    run.pruned, run.seconds, run.process, run.signal = False, 1.0, run, None
    run.returncode = None
    path = run.directory / "train/validation.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"step": 1, "ndcg@10": 0.1}) + "\n")
    call = Search(plan, study, pruner, played, [])
    call._active = [run]
    call.run(Budget(hours=1e-9))
    assert study.trials[bad.number].state == optuna.trial.TrialState.PRUNED
    assert study.trials[kept.number].state == optuna.trial.TrialState.RUNNING


def test_a_run_that_another_call_left_at_a_rung_is_not_started_to_be_stopped(played, monkeypatch):
    """A training process that has just begun cannot save, so SIGTERM would make it a failure."""
    plan = plan_of([RATE])
    study, pruner = open_study(plan, played, "hash", "random", 0)
    asked = [study.ask({d.field: d.distribution for d in plan.dimensions}) for _ in range(2)]
    for trial, value in zip(asked, (0.9, 0.1), strict=True):
        path = played / f"runs/{trial.number:04}/train/validation.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"step": 1, "ndcg@10": value}) + "\n")
    Search(plan, study, pruner, played, []).run(Budget(runs=2))
    assert [name for name, _ in PlayedRun.ended] == ["0000"]
    assert [run.state for run in collect_runs(study)] == ["complete", "stopped"]


def test_a_call_that_ends_while_it_chooses_a_setting_breaks_nothing(played):
    plan = plan_of()
    study, _ = open_study(plan, played, "hash", "tpe", 0)
    study.ask()  # no field is chosen yet, as after a kill
    write_results(plan, study, played, "data")
    runs = search(plan, played, Budget(runs=1))
    assert [run.state for run in runs] == ["complete"] and runs[0].is_preset
    assert runs[0].setting == {"optim.learning_rate": 0.005, "method.slots": 4}


def test_a_workdir_holds_one_search(played):
    search(plan_of(), played, Budget(runs=1))
    with pytest.raises(
        UserError, match="holds another search .*config.train.batch_size was 8, now 16"
    ):
        search(plan_of(changes={"train.batch_size": 16}), played, Budget(runs=1))
    with pytest.raises(UserError, match="another search .*search was .*use another --workdir"):
        search(plan_of([RATE]), played, Budget(runs=1))


def test_a_preset_outside_of_the_search_is_not_tried(played, capsys):
    runs = search(plan_of(["optim.learning_rate=0.01..0.03"]), played, Budget(runs=2))
    assert not any(run.is_preset for run in runs)
    assert (
        "optim.learning_rate=0.005 of the preset is not part of 0.01..0.03"
        in capsys.readouterr().out
    )


def test_runs_that_fail_are_listed_and_too_many_end_the_search(played):
    with pytest.raises(
        UserError, match="5 runs in a row failed .exit code 1: the loss is not finite"
    ):
        search(plan_of(["optim.learning_rate=0.091..0.1"]), played, Budget(runs=20))
    assert "- run 4: exit code 1: the loss is not finite" in (played / "tune.md").read_text()


def test_the_preset_itself_must_train(played):
    changes = {"optim.learning_rate": 0.095}
    with pytest.raises(UserError, match="The preset's own setting failed"):
        search(plan_of(["method.slots=2,4,8"], changes), played, Budget(runs=20))


def test_combinations_that_the_configuration_refuses_are_no_runs(played):
    """Every value is allowed alone, with the preset's others; some pairs are not."""
    plan = plan_of(["data.recent=1,16", "data.segment=8,16", RATE])
    runs = search(plan, played, Budget(runs=8), "random")
    refused = [run for run in runs if run.state == "refused"]
    assert refused and len(runs) == 8 + len(refused)
    assert all("data.recent must be between 1 and data.segment" in run.error for run in refused)


def test_a_trial_is_validated_at_its_rungs():
    config = make_trial_config(plan_of(), {"optim.learning_rate": 0.01, "method.slots": 2})
    assert (config.train.eval_every, config.train.checkpoint_every) == (1, 1)
    assert config.train.patience == 10 * 350 and config.train.steps == 9


def test_a_preset_file_restores_the_configuration(tmp_path):
    changes = {"loss.negatives": 64, "optim.clip_norm": None, "model.backbone": "hstu"}
    config = load_preset("demo", changes)
    write_preset(config, tmp_path / "mine.py", "Text.")
    assert load_preset(tmp_path / "mine.py") == config


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path):
    """The commands of docs/tuning.md: prepare, search, and train with what was found."""
    page = (ROOT / "docs/tuning.md").read_text()
    block = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    commands = re.sub(r"^python ", f"{sys.executable} ", block, flags=re.MULTILINE)
    result = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    workdir = tmp_path / "runs/tune"
    records = json.loads((workdir / "tune.json").read_text())
    assert len(records["runs"]) == 2 and records["best"] is not None
    for name in ("tune.md", "tune.png", "best.py"):
        assert (workdir / name).is_file()
    assert (tmp_path / "runs/best/train/summary.json").is_file()


@pytest.mark.slow
def test_a_killed_search_resumes(tmp_path):
    """SIGTERM stops its runs, too; the same command then completes them."""
    run = [sys.executable, "-m"]
    prepare = "launch.prepare --source=synthetic --output_dir=data --synthetic_users=40 "
    prepare += "--synthetic_items=60 --synthetic_length=100"
    subprocess.run([*run, *prepare.split()], cwd=tmp_path, env=ENVIRONMENT, check=True)
    tune = (
        "launch.tune --config=synthetic --data=data --workdir=tune --config.method.name=recent "
        "--search=model.dropout=0,0.1 --config.train.batch_size=4 --config.train.steps=60 "
        "--max_runs=1 --workers=1"
    )
    with subprocess.Popen([*run, *tune.split()], cwd=tmp_path, env=ENVIRONMENT) as killed:
        directory = tmp_path / "tune/runs/0000"
        while not read_curve(directory):
            assert killed.poll() is None
            time.sleep(0.2)
        killed.send_signal(signal.SIGTERM)
    assert killed.returncode == 128 + signal.SIGTERM
    assert max(read_curve(directory)) < 60
    done = subprocess.run([*run, *tune.split()], cwd=tmp_path, env=ENVIRONMENT, capture_output=True)
    assert b"resumes after step" in done.stdout and b"best: run 0" in done.stdout, done.stderr
    assert list(read_curve(directory)) == [7, 14, 21, 28, 35, 42, 49, 56, 60]
