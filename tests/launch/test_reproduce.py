"""launch.reproduce: its tables against values worked out by hand, and the machinery as users run it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launch.experiments import results_file, scheduler, summaries, tables
from launch.experiments.results_file import SuiteResults
from launch.experiments.rows import Row, collect_rows
from launch.experiments.settings import TUNING_GRID, choose_setting, override
from launch.experiments.suites import MAIN, SUITES, TUNED, list_runs
from rec2pm_jax.config_dict import to_dict
from rec2pm_jax.data.splits import settings as protocol_settings
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.lock import alone_in
from rec2pm_jax.methods.registry import config_hash
from rec2pm_jax.runs import list_heuristics

ROOT = Path(__file__).parents[2]


def record(variant, seed, ndcg, backbone="sasrec"):
    trained = backbone is not None
    return {
        "run": f"synthetic/{backbone or 'heuristics'}/{variant}/seed{seed}",
        "variant": variant,
        "method": "full" if trained else "popularity",
        "memory": "none",
        "backbone": backbone,
        "split": "test",
        "protocol": "last_10",
        "seen_masked": False,
        "users": 4,
        "targets": 40,
        "config_hash": "0" * 12 if trained else None,
        "data_hash": "d",
        "budget": {"steps": 4, "batch_size": 2},
        "metrics": {"ndcg@10": float(np.mean(ndcg)), "hr@10": 0.5, "hr@50": 0.75, "mrr": 0.25},
        "state_bytes_per_user": 1024 if variant == "rec2pm_o" else 0,
        "swap": {"ndcg@10": 0.125} if variant == "rec2pm_o" else None,
        "train_wall_s": 120.0 if trained else None,
    }


@pytest.fixture
def found(tmp_path):
    """Two seeds of rec2pm_o, one of full and recent, and a heuristic that beats them all."""
    results = SuiteResults(tmp_path, "main")
    rows = [
        ("full", 0, [0.2, 0.2, 0.2, 0.2], "sasrec"),
        ("recent", 0, [0.1, 0.1, 0.1, 0.1], "sasrec"),
        ("rec2pm_o", 0, [0.3, 0.1, 0.3, 0.3], "sasrec"),
        ("rec2pm_o", 1, [0.3, 0.3, 0.1, 0.5], "sasrec"),
        ("popularity", 0, [0.4, 0.4, 0.4, 0.4], None),
    ]
    for variant, seed, ndcg, backbone in rows:
        one = record(variant, seed, ndcg, backbone)
        results.records.append(one)
        path = results.users_path(one["run"])
        path.parent.mkdir(exist_ok=True)
        lengths = np.array([30, 499, 500, 900], np.int32)
        np.savez(path, ndcg=np.array([ndcg], np.float32), lengths=lengths)
    return results


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table_pairs_every_row_and_shows_the_best_first(found):
    summaries.write(found)
    lines = (found.path.with_suffix(".md")).read_text().splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| method"))
    names = cells(lines[header])
    table = [dict(zip(names, cells(line), strict=True)) for line in lines[header + 2 : header + 6]]
    assert [row["method"] for row in table] == ["**popularity**", "rec2pm_o", "full", "recent"]
    ours = table[1]
    assert ours["seeds"] == "2" and ours["state, bytes"] == "1,024"
    assert ours["NDCG@10"] == "27.50 ± 3.54"  # seeds 25 and 30
    assert ours["/ full"].startswith("1.375 (") and ours["/ recent"].startswith("2.750 (")
    assert ours["memory swapped"] == "12.50" and ours["training, min"] == "2"
    assert table[2]["/ full"] == "1" and table[2]["/ recent"].startswith("2.000 (2.000..2.000)")
    assert table[0]["training, min"] == "**-**" and table[0]["seeds"] == "**-**"


def test_long_histories_have_a_table_of_their_own(found):
    summaries.write(found)
    text = found.path.with_suffix(".md").read_text()
    long = text[text.index("at least 500 events (2)") :].splitlines()
    ours = next(line for line in long if line.startswith("| rec2pm_o"))
    assert cells(ours)[1] == "30.00 ± 0.00"  # (.3 + .3) / 2 and (.1 + .5) / 2
    assert cells(ours)[2].startswith("1.500 (")
    assert found.path.with_suffix(".png").stat().st_size > 10_000


def test_a_suite_names_the_runs_of_main_that_it_trained_again(found):
    write_records(found.path, found.records)
    other = SuiteResults(found.path.parent, "denoise")
    for one in found.records[:2]:
        name = f"{one['variant']}/random 0"
        noise = {"kind": "random", "fraction": 0.0}
        other.records.append(one | {"variant": name, "noise": noise})
        other.users_path(one["run"]).parent.mkdir(exist_ok=True)
        other.users_path(one["run"]).write_bytes(found.users_path(one["run"]).read_bytes())
    assert summaries.note_retrained(other) == []
    other.records[1]["step"] = 1000
    (_, line) = summaries.note_retrained(other)
    assert line.endswith("weights are not main's: sasrec/recent/seed0.")


def row(variant, ndcg, lengths=(30, 200, 500, 1000), **fields):
    one = record(variant, 0, ndcg) | fields
    return Row(variant, [one], np.array([ndcg]), np.array(lengths))


def test_a_method_that_replaces_the_backbone_stands_beside_the_others(found):
    next(r for r in found.records if r["variant"] == "recent")["backbone"] = "lru"
    [((_, backbone), rows)] = collect_rows(found).items()
    assert backbone == "sasrec"
    assert {row.variant for row in rows} == {"full", "recent", "rec2pm_o", "popularity"}


def test_noise_table_shows_the_share_of_the_clean_value():
    levels = [("popular", 0.5, 0.1), ("random", 0.5, 0.2), ("random", 0.0, 0.4)]
    rows = [
        row(f"full/{kind} {share:g}", [value] * 4, noise={"kind": kind, "fraction": share})
        for kind, share, value in levels
    ]
    header, _, full = (cells(line) for line in tables.tabulate_noise(rows))
    assert header == ["method", "clean", "popular 50%", "random 50%"]
    assert full == ["full", "40.00", "10.00 (0.250)", "20.00 (0.500)"]


def test_tables_by_length_and_of_drift():
    steps = [
        {"updates": 1, "users": 9, "relative": 0.0},
        {"updates": 20, "users": 3, "relative": 0.5},
    ]
    rows = [row("rec2pm_o", [0.1, 0.2, 0.3, 0.4], drift=steps), row("full", [0.5] * 4, drift=[])]
    header, _, ours, _ = (cells(line) for line in tables.tabulate_lengths(rows))
    bins = ("0-200", "200-500", "500-1000", "1000-5000")  # nobody has 5,000 events
    assert header[1:] == [f"{name} (1 users)" for name in bins]
    assert ours == ["rec2pm_o", "10.00", "20.00", "30.00", "40.00"]
    assert [cells(line) for line in tables.tabulate_drift(rows)[::2]] == [
        ["method", "1", "20"],
        ["rec2pm_o", "0.000 (9)", "0.500 (3)"],
    ]
    assert tables.tabulate_drift(rows[1:]) == []


def made_of(run):
    """What a record says of its run: the data decided whether the model reads times."""
    assert run.config.model.use_times is None
    fitted = override(run.config, model={"use_times": True})
    return {
        "run": run.name,
        "config": to_dict(fitted),
        "config_hash": config_hash(fitted),
        "budget": run.budget,
    }


def test_a_run_is_done_only_for_the_same_configuration_budget_and_data(tmp_path):
    results = SuiteResults(tmp_path, "smoke")
    run = list_runs("smoke")[0]
    results.records.append(made_of(run) | {"data_hash": "d"})
    assert not results.has(run, "d")  # the per-user values are missing
    results.users_path(run.name).parent.mkdir()
    results.users_path(run.name).touch()
    assert results.has(run, "d")
    assert not results.has(run, "e")
    for field, value in (("config_hash", "x"), ("budget", {"steps": 5, "batch_size": 4})):
        kept = results.records[0][field]
        results.records[0][field] = value
        assert not results.has(run, "d"), field
        results.records[0][field] = kept


def test_records_of_another_suite_configuration_or_data_are_dropped(tmp_path):
    results, runs = SuiteResults(tmp_path, "smoke"), list_runs("smoke")
    current = [record(run.variant, 0, [0.1]) | made_of(run) for run in runs]
    gone = record("gone", 0, [0.1])
    heuristic = record("popularity", 0, [0.1], backbone=None)
    results.records = [*current, gone, heuristic]
    current[1]["budget"] = {"steps": 2500, "batch_size": 16}
    results.users_path(gone["run"]).parent.mkdir()
    for one in results.records:
        results.users_path(one["run"]).touch()
    assert results.drop_stale(runs, {}) == [runs[1].name, gone["run"]]
    assert SuiteResults(tmp_path, "smoke").records == [current[0], current[2], heuristic]
    assert not results.users_path(gone["run"]).exists()
    assert results.users_path(runs[0].name).exists()
    assert results.drop_stale(runs, {"synthetic": "d"}) == []
    assert results.drop_stale(runs, {"synthetic": "e"}) == [runs[0].name, runs[2].name]


def test_heuristics_are_made_again_for_another_window(tmp_path, monkeypatch):
    made = []

    def fake(config, dataset):
        made.append(config.data.read_length)
        settings = protocol_settings(config.data)
        return [
            SimpleNamespace(
                record=record("any", 0, [0.1], backbone=None)
                | {"method": one.name, "memory": "none", "config": settings | one.settings}
                | {"request_time_known": known}
            )
            for one, known in list_heuristics(config, dataset)
        ]

    dataset = SimpleNamespace(content_hash="d", has_times=True)
    monkeypatch.setattr(results_file, "open_dataset", lambda _: dataset)
    monkeypatch.setattr(results_file, "evaluate_heuristics", fake)
    monkeypatch.setattr(results_file, "write_user_values", lambda path, results: path.touch())
    config = list_runs("smoke")[0].config
    longer = dataclasses.replace(config, data=dataclasses.replace(config.data, segment=50))
    for one in (config, config, longer, longer):
        SuiteResults(tmp_path, "smoke").add_heuristics("synthetic", tmp_path, one)
    assert made == [config.data.read_length, longer.data.read_length]
    results = SuiteResults(tmp_path, "smoke")
    assert len(results.records) == 10 and len({r["run"] for r in results.records}) == 10
    # A table without one of them is made again, and so is one of a dataset that has lost its times.
    write_records(results.path, results.records[1:])
    SuiteResults(tmp_path, "smoke").add_heuristics("synthetic", tmp_path, longer)
    dataset.has_times = False
    SuiteResults(tmp_path, "smoke").add_heuristics("synthetic", tmp_path, longer)
    assert made[2:] == [longer.data.read_length] * 2
    assert len(SuiteResults(tmp_path, "smoke").records) == 5


def test_runs_on_optional_data_are_left_out_where_it_is_not_prepared(tmp_path, capsys):
    runs = list_runs("last_basket")
    left = scheduler._leave_out_optional(runs, tmp_path)
    assert left == [run for run in runs if run.dataset != "coop100"] != runs
    assert "coop100 is not prepared" in capsys.readouterr().out
    (tmp_path / "coop100").mkdir()
    (tmp_path / "coop100" / "dataset.json").touch()
    assert scheduler._leave_out_optional(runs, tmp_path) == runs


def test_more_workers_than_cores_and_a_second_process_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_data_hash", lambda *_: "d")
    job = scheduler.Job("smoke", "data", tmp_path / "runs", tmp_path / "results")
    with pytest.raises(UserError, match="this process may use"):
        scheduler.reproduce(dataclasses.replace(job, workers=10_000))
    with alone_in(tmp_path / "results/smoke.users"):
        with pytest.raises(UserError, match="smoke.users is in use by another process"):
            scheduler.reproduce(job)


def test_results_of_something_else_are_not_overwritten(tmp_path):
    (tmp_path / "main.json").write_text('[{"method": "full"}]')
    with pytest.raises(UserError, match="move it away"):
        SuiteResults(tmp_path, "main")


def test_results_that_are_not_json_are_not_overwritten(tmp_path):
    (tmp_path / "main.json").write_text("[{")
    with pytest.raises(UserError, match="is not JSON"):
        SuiteResults(tmp_path, "main")


@pytest.mark.parametrize("suite", SUITES)
def test_names_of_runs_are_unique(suite):
    assert max(Counter(run.name for run in list_runs(suite)).values()) == 1


def test_main_holds_the_claimed_rows_with_three_seeds():
    seen = {(r.dataset, r.variant, r.seed) for r in list_runs("main")}
    claims = {
        "complete_journey_types": {
            "rec2pm_o",
            "rec2pm_528",
            "full",
            "recent_exact",
            "tok_serial_o",
        },
        "online_retail": {"rec2pm_o", "full"},
        "ml1m_200": {"rec2pm_o", "recent", "tok_serial_o"},
        "coop100": {"rec2pm_o", "full"},
        "complete_journey_products": {"rec2pm_o", "full"},
    }
    for dataset, methods in claims.items():
        assert set(itertools.product([dataset], methods, range(3))) <= seen
    everywhere = ("rec2pm_o", "full", "recent", "recent_exact", "tok_serial_o", "linear_recurrence")
    for dataset, method in itertools.product(MAIN, everywhere):
        assert (dataset, method, 0) in seen
    first = [run.seed for run in list_runs("main")]
    assert first == sorted(first)


def test_data_with_real_times_have_rows_in_main_and_in_last_basket():
    shown = {suite: {run.dataset for run in list_runs(suite)} for suite in ("main", "last_basket")}
    assert {"online_retail", "coop100"} <= shown["main"] & shown["last_basket"]
    assert "ml1m_200" not in shown["last_basket"]  # it has an order only
    runs = list_runs("last_basket")
    assert {run.config.data.protocol for run in runs} == {"last_basket"}
    assert not {run.name for run in runs} & {run.name for run in list_runs("main")}


def test_metrics_of_sets_have_columns(tmp_path):
    found = SuiteResults(tmp_path, "last_basket")
    for name, backbone in (("last_basket/full", "sasrec"), ("counts_and_transitions", None)):
        one = record(name, 0, [0.2, 0.4], backbone) | {"protocol": "last_basket"}
        one["metrics"] |= {"recall@10": 0.125, "precision@10": 0.25, "map@10": 0.375}
        found.records.append(one)
        found.users_path(one["run"]).parent.mkdir(exist_ok=True)
        np.savez(found.users_path(one["run"]), ndcg=[[0.2, 0.4]], lengths=[30, 40])
    summaries.write(found)
    lines = found.path.with_suffix(".md").read_text().splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("| method"))
    names = cells(lines[header])
    table = [dict(zip(names, cells(line), strict=True)) for line in lines[header + 2 :]]
    assert {row["method"].strip("*") for row in table} == {"full", "counts_and_transitions"}
    shown = [table[1][name] for name in ("RECALL@10", "PRECISION@10", "MAP@10", "NDCG@10")]
    assert shown == ["12.50", "25.00", "37.50", "30.00"]


def test_settings_are_those_that_the_search_found_best():
    path = ROOT / "results/tuning.json"
    if not path.exists():
        pytest.skip("the search has not been made anew since version 0.1")
    records = json.loads(path.read_text())
    found: dict[str, dict[tuple, float]] = {}
    for record in records:
        config = record["config"]
        setting = {
            "learning_rate": config["optim"]["learning_rate"],
            "dropout": config["model"]["dropout"],
        }
        assert record["split"] == "validation" and setting in TUNING_GRID
        if record["request_time_known"]:
            scores = found.setdefault(record["variant"].split("/")[1], {})
            scores[tuple(setting.values())] = record["metrics"]["ndcg@10"]
    assert set(found) == set(TUNED)
    for method, scores in found.items():
        assert len(scores) == len(TUNING_GRID)
        chosen = scores[tuple(choose_setting(method).values())]
        assert chosen > max(scores.values()) - 1e-3  # another seed moves a value by half of it


def changed(config, base):
    sections = [
        (getattr(config, f.name), getattr(base, f.name)) for f in dataclasses.fields(config)
    ]
    return {
        field.name
        for ours, theirs in sections
        for field in dataclasses.fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    }


def test_ablations_change_one_factor():
    base, *others = list_runs("ablation")
    together = {  # factors of several fields
        "without live memories or L_con": {"live_memory_prob", "consistency"},
        **{f"S = {s}": {"segment", "segments"} for s in (10, 25, 50)},
        "without own items": {"exact_entries", "repeat_head"},
    }
    for run in others:
        fields, name = changed(run.config, base.config), run.variant.removeprefix("ablation/")
        if name == "plain recipe":
            assert {"plain_memory", "identity_init", "consistency"} < fields
        else:
            assert len(fields) == 1 or fields == together[name], (name, fields)
    assert len({config_hash(run.config) for run in list_runs("ablation")}) == len(others) + 1


def test_a_run_is_refused_while_another_process_is_at_it(tmp_path):
    with alone_in(tmp_path / "run"):
        with pytest.raises(UserError, match="in use by another process"):
            with alone_in(tmp_path / "run"):
                raise AssertionError("both hold the lock")
    with alone_in(tmp_path / "run"):
        pass


# --- as users run it ---


def reproduce(folder, **flags):
    command = [sys.executable, "-m", "launch.reproduce", "--suite=smoke", "--data=data"]
    command += ["--workdir=runs", *(f"--{name}={value}" for name, value in flags.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_smoke_suite_is_stopped_goes_on_and_skips_what_is_done(tmp_path):
    error = reproduce(tmp_path)
    assert error.returncode == 1 and "--source=synthetic" in error.stderr  # what to prepare
    command = [sys.executable, "-m", "launch.prepare", "--source=synthetic"]
    command += ["--output_dir=data/synthetic", "--synthetic_users=200"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)

    stopped = reproduce(tmp_path, max_hours=0.5 / 3600)  # before anything can be done
    assert stopped.returncode == 0, stopped.stderr
    assert "3 runs are still to do" in stopped.stdout
    whole = reproduce(tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert "3 runs, 0 done" in whole.stdout
    records = json.loads((tmp_path / "results/smoke.json").read_text())
    names = {"full", "recent", "rec2pm_o"}
    unknown = {f"{name}, request time unknown" for name in names}
    assert {r["variant"] for r in records} == names | unknown
    assert all(r["request_time_known"] == (r["variant"] in names) for r in records)
    assert all(r["git_commit"] and r["data_hash"] and r["targets"] for r in records)
    table = (tmp_path / "results/smoke.md").read_text()

    # Runs with results need neither their directory nor time.
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    again = reproduce(tmp_path)
    assert again.returncode == 0 and "3 runs, 3 done, 0 to do" in again.stdout
    assert (tmp_path / "results/smoke.md").read_text() == table

    # Only a lost run is repeated.
    kept = [r for r in records if not r["variant"].startswith("recent")]
    write_records(tmp_path / "results/smoke.json", kept)
    once_more = reproduce(tmp_path, only="recent", workers=1)
    assert once_more.returncode == 0 and "1 runs, 0 done" in once_more.stdout
    both = json.loads((tmp_path / "results/smoke.json").read_text())
    assert sorted(r["run"] for r in both) == sorted(r["run"] for r in records)
    new, old = (
        next(r for r in rs if r["variant"] == "recent")["metrics"] for rs in (both, records)
    )
    assert new == pytest.approx(old, rel=1e-3)

    broken = reproduce(tmp_path, only="(recent")
    assert broken.returncode == 1 and "--only=(recent: is no regular expression" in broken.stderr
    nothing = reproduce(tmp_path, only="nonsense")
    assert nothing.returncode == 1 and "--only=nonsense" in nothing.stderr
