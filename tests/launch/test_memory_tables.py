"""Tables of stored and aging memories against values worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from launch.experiments import memory_tables
from launch.experiments.analyses import ANALYSES
from launch.experiments.results_file import SuiteResults, write_user_values
from launch.experiments.rows import Row, TargetValues, collect_rows
from launch.experiments.run import Run
from launch.experiments.run_one import label_records
from rec2pm_jax.evaluation.record import write_records
from rec2pm_jax.methods.codec import FORMATS
from rec2pm_jax.methods.registry import make_method
from rec2pm_jax.runs import TrainedModel
from tests.helpers.evaluate_fakes import FakeDataset
from tests.helpers.stream import make_config, random_params

DATA = {"segment": 10, "recent": 1}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(variant, ndcg, data=DATA, targets=None, **fields):
    record = {"metrics": {"ndcg@10": float(np.mean(ndcg))}, "config": {"data": data}} | fields
    return Row(variant, [record], np.array([ndcg]), np.array([30, 200, 201, 1000]), targets)


def test_quantised_table_pairs_formats_of_all_users_and_of_many_updates():
    bytes_ = {"int8": 272, "float32": 1024, "bfloat16": 512}
    ndcg = {
        "test": {
            "int8": [0.4, 0.2, 0.3, 0.5],
            "float32": [0.2, 0.2, 0.4, 0.4],
            "bfloat16": [0.2, 0.2, 0.4, 0.4],
        },
        "validation": {kind: [0.2] * 4 for kind in bytes_},
    }
    steps = [{"updates": 20, "users": 3, "relative": 0.5}]
    rows = [
        row(
            f"x/{kind}/{split}",
            values,
            stored=kind,
            split=split,
            state_bytes_per_user=bytes_[kind],
            **({"drift": steps} if (kind, split) == ("int8", "test") else {}),
        )
        for split, by_kind in ndcg.items()
        for kind, values in by_kind.items()
    ]
    lines = memory_tables.tabulate_quantised(rows)
    header, _, everyone, many, both, _ = (cells(line) for line in lines[:6])
    assert everyone[:4] == ["x", "test", "all (4)", "30.000"]
    by_name = dict(zip(header, everyone, strict=True))
    assert by_name["bfloat16: difference"] == "+0.0000 (+0.0000..+0.0000)"
    assert by_name["int8: difference"].startswith("+5.0000 (")  # points: (.2 + 0 - .1 + .1) / 4
    assert by_name["int8: ratio"].startswith("1.1667 (")
    assert everyone[-3:] == ["1,024", "512", "272"]
    # 201 and 1000 events have 20 and 99 segments of 10 in memory, 200 events 19.
    assert many[:4] == ["x", "test", ">= 20 updates (2)", "40.000"]
    assert many[6].startswith("+0.0000 (-10.0000..+10.0000")
    assert both[:4] == ["x", "test and validation", "all (4)", "25.000"]
    assert both[6].startswith("+2.5000 (")
    assert cells(lines[-1]) == ["x/int8/test", "0.500 (3)"]


def test_since_archive_groups_targets_by_raw_events():
    # n - archived(n) with S = 10, R = 1: 1 -> 1, 10 -> 10, 11 -> 1, 12 -> 2, 25 -> 5.
    position = np.array([1, 10, 11, 12, 25])
    user = np.array([0, 0, 0, 1, 1])

    def of(variant, values, data=DATA):
        return row(variant, [0.5] * 4, data, TargetValues(np.array(values), user, position))

    rows = [
        of("full", [0.4, 0.4, 0.4, 0.4, 0.4]),
        of("rec2pm_o", [0.2, 0.8, 0.4, 0.6, 0.2]),
        of("ablation/R = 3", [0.4] * 5, {"segment": 10, "recent": 3}),
    ]
    header, _, *body = (cells(line) for line in memory_tables.tabulate_since_archive(rows))
    assert header == ["method", "S, R", "all targets", "/ full"] + [
        "1-2", "3-4", "5-6", "7-8", "9-10", "11-12",
    ]  # fmt: skip
    found = {line[0]: line[1:] for line in body}
    assert found["full"] == ["10, 1", "50.00", "1", "1", "-", "1", "-", "1", "-"]
    ours = found["rec2pm_o"]
    # Users' means of targets 1-2: (.2 + .4) / 2 and .6, of full's .4 and .4.
    assert ours[3].startswith("1.125 (") and ours[5].startswith("0.500 (")
    assert ours[7].startswith("2.000 (") and ours[4] == ours[6] == "-"
    # R = 3: raw events 1, 10, 11, 12, 5.
    assert found["R = 3"][0] == "10, 3" and found["R = 3"][8].startswith("1.000 (")
    assert memory_tables.tabulate_since_archive(rows[1:])[2].count("(") == 0  # no `full`: no ratios


@pytest.mark.parametrize(
    "analysis", [pytest.param("quantised", marks=pytest.mark.slow), "since_archive"]
)
def test_an_analysis_leaves_what_its_table_needs(analysis, tmp_path):
    dataset = FakeDataset([60, 40, 33])
    config = make_config()
    method = make_method(config, dataset.num_items)
    meta = {"step": 1, "git_commit": "c"}
    model = TrainedModel(config, method, random_params(method), meta, 1.0, "cpu")
    run = Run("synthetic", "rec2pm_o", config, analysis=analysis)
    results = ANALYSES[analysis](run, model, dataset)
    label_records(run, results)
    found = SuiteResults(tmp_path, analysis)
    path = found.users_path(run.name)
    path.parent.mkdir()
    write_user_values(path, results)
    found.records = [result.record for result in results]
    write_records(found.path, found.records)
    [rows] = collect_rows(found).values()
    if analysis == "quantised":
        assert {row.variant for row in rows} == {
            f"rec2pm_o/{kind}/{split}" for kind in FORMATS for split in ("test", "validation")
        }
        [strayed] = [
            step["relative"]
            for row in rows
            if row.variant == "rec2pm_o/int8/test"
            for step in row.records[0]["drift"]
            if step["updates"] == 5
        ]
        assert 0 < strayed < 0.1
        assert cells(memory_tables.tabulate_quantised(rows)[2])[0] == "rec2pm_o"
    else:
        [only] = rows
        evaluation = results[0].evaluation
        assert only.targets.position.tolist() == evaluation.position.tolist()
        per_user = [only.targets.ndcg[only.targets.user == u].mean() for u in range(3)]
        np.testing.assert_allclose(per_user, only.ndcg[0], rtol=1e-6)
        [line] = memory_tables.tabulate_since_archive(rows)[2:]
        assert cells(line)[0] == "rec2pm_o"
        with pytest.raises(ValueError, match="different targets"):
            moved = dataclasses.replace(only.targets, position=only.targets.position + 1)
            memory_tables.tabulate_since_archive(
                [only, dataclasses.replace(only, variant="full", targets=moved)]
            )
