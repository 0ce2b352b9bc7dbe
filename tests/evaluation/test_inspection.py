"""launch.inspect_data: figures against loops, and every problem on a dataset that has it."""

from __future__ import annotations

import builtins
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rec2pm_jax import plotting
from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.errors import UserError
from rec2pm_jax.evaluation.heuristic import Heuristic, evaluate_heuristic
from rec2pm_jax.evaluation.inspection import find_problems, format_report, inspect_dataset
from rec2pm_jax.evaluation.inspection.figures import PANELS, draw_figures
from rec2pm_jax.evaluation.inspection.settings import suggest_settings
from rec2pm_jax.evaluation.spec import EvalSpec
from tests.helpers.data import prepare_log, random_log

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000


def dataset_of(tmp_path, rows, **options):
    """rows: (user, item, timestamp) triples."""
    log = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    prepare_log(log, tmp_path, **options)
    return open_dataset(tmp_path / "data")


def ordinary(users=120, items=60, events=30, seed=0):
    """A log nobody would ask about: people return to their own items every few hours."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = rng.choice(items, 8, replace=False)
        # The own items in turn, and now and then another one: old events help, recent do not.
        for event in range(events + user % 5):
            item = own[event % 8] if rng.random() < 0.9 else rng.integers(items)
            rows.append((f"u{user}", f"i{item}", NOW + 20_000 * event + int(rng.integers(9_000))))
    return rows


def test_repeats_and_gaps_match_loops(tmp_path):
    prepare_log(random_log(), tmp_path, type_column="kind")
    dataset = open_dataset(tmp_path / "data")
    found = inspect_dataset(dataset)
    since, gaps, position = [], [], []
    for user in range(dataset.num_users):
        sequence = dataset.sequence(user)
        for place, item in enumerate(sequence.ids):
            before = [p for p in range(place) if sequence.ids[p] == item]
            since.append(place - before[-1] if before else 0)
            position.append(place)
            if place:
                gaps.append(sequence.times[place] - sequence.times[place - 1])
    assert found.since.tolist() == since and found.gaps.tolist() == gaps
    assert found.position.tolist() == position
    assert found.types["buy"] == pytest.approx(np.mean(dataset.histories.types == 1))
    assert found.counts.tolist() == sorted(dataset.items.counts[1:], reverse=True)


def test_the_window_curve_is_that_of_the_heuristic(tmp_path):
    dataset = dataset_of(tmp_path, ordinary())
    curve = inspect_dataset(dataset).curve
    assert (curve.protocol, curve.users, curve.windows) == ("last_10", 120, (10, 25, 0))
    for window, value in zip(curve.windows, curve.ndcg, strict=True):
        heuristic = Heuristic("personal_frequency", window=window)
        spec = EvalSpec("validation", protocol="last_10")
        expected = evaluate_heuristic(heuristic, dataset, spec)
        assert value == pytest.approx(expected.metrics["ndcg@10"])


def test_an_ordinary_dataset_raises_no_question(tmp_path):
    dataset = dataset_of(tmp_path, ordinary())
    found = inspect_dataset(dataset)
    assert find_problems(found) == []
    text = format_report(found, "log")
    assert "all 120 users" in text and text.endswith("nothing stands out")
    assert len(text.splitlines()) < 25 and max(map(len, text.splitlines())) < 180


def one_user_more(count):
    return [("robot", f"i{e % 60}", NOW + 20_000 * e) for e in range(count)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: ordinary() + one_user_more(400), "user robot has 9% of all events"),
        (lambda: [(u, i, NOW) for u, i, _ in ordinary()], "all events share one time, 2023-11-14"),
        (
            lambda: [(u, i, t // 86_400 * 86_400) for u, i, t in ordinary()],
            "share their second with the one before .* shuffled by a hash",
        ),
        (
            lambda: [(u, i if e % 4 else "bag", t) for e, (u, i, t) in enumerate(ordinary())],
            "item 'bag' has 2.% of all events",
        ),
        (
            lambda: ordinary() + [(f"u{e % 120}", f"rare{e}", NOW + e) for e in range(200)],
            "have fewer than 5 events .*: try --min_item_count=5",
        ),
        (lambda: ordinary(events=10), "100% of users have fewer than 21 events"),
        (lambda: [r for r in ordinary() if int(r[0][1:]) % 5 == 0], "only 24 users"),
        (
            lambda: [r for r in ordinary() if int(r[0][1:]) % 5 == 0],
            "100% of users have exactly 30 events",
        ),
        (lambda: ordinary(items=40), "only 40 items"),
        (lambda: sorted(ordinary() * 2), "repeat the item just before them at the same time"),
        (lambda: [*ordinary(), ("u1", "i1", 5)], r"a few times lie far outside .*from 1970-01-01"),
        (lambda: [*ordinary(), ("u1", "i1", 3_500_000_000)], "in the future, until 2080"),
        (lambda: [(u, i, t - NOW + 5) for u, i, t in ordinary()], "times begin in 1970"),
        (
            lambda: [(u, f"{u}-{t}", t) for u, i, t in ordinary()],
            "personal frequency does not beat popularity",
        ),
        (lambda: [("u", "a", NOW), ("v", "b", NOW + 9)], "no user has the 3 events"),
    ],
)
def test_problems_are_flagged(tmp_path, rows, message):
    flagged = find_problems(inspect_dataset(dataset_of(tmp_path, rows())))
    assert any(re.search(message, text) for text in flagged), flagged


def basket_log(**columns) -> pl.DataFrame:
    """Return a log whose events come in pairs of one second."""
    log = pl.DataFrame(ordinary(), schema=["user", "item", "timestamp"], orient="row")
    place = pl.int_range(pl.len()).over("user")
    log = log.with_columns(timestamp=NOW + 20_000 * (place // 2), at=pl.int_range(pl.len()))
    return log.with_columns(**columns)


def test_an_order_that_the_user_states_is_not_lost(tmp_path):
    problems = {}
    for name, options in {
        "shuffle": {},
        "keep": {"ties": "keep"},
        "key": {"order_column": "at"},
    }.items():
        prepare_log(basket_log(), tmp_path, name=name, **options)
        problems[name] = find_problems(inspect_dataset(open_dataset(tmp_path / name)))
    assert "order within says nothing" in problems["shuffle"][0]
    assert problems["keep"] == problems["key"] == []


def test_kept_ties_that_are_sorted_by_item_are_flagged(tmp_path):
    log = basket_log().sort("user", "timestamp", "item")
    prepare_log(log, tmp_path, ties="keep")
    problems = find_problems(inspect_dataset(open_dataset(tmp_path / "data")))
    assert len(problems) == 1 and "100% of neighbours with equal times are sorted" in problems[0]


def test_a_view_and_a_cart_of_one_item_are_two_actions(tmp_path):
    rows = ordinary()
    log = pl.DataFrame(sorted(rows * 2), schema=["user", "item", "timestamp"], orient="row")
    log = log.with_columns(kind=pl.Series(["view", "cart"] * len(rows)))
    prepare_log(log, tmp_path, type_column="kind", ties="keep")
    problems = find_problems(inspect_dataset(open_dataset(tmp_path / "data")))
    assert not [text for text in problems if "logged twice" in text]


def test_an_item_again_after_minutes_is_another_action(tmp_path):
    rows = [(u, i, t + 600 * n) for u, i, t in ordinary() for n in range(2)]
    problems = find_problems(inspect_dataset(dataset_of(tmp_path, rows)))
    assert not [text for text in problems if "logged twice" in text]


def test_settings_are_suggested_with_a_reason(tmp_path):
    log = pl.DataFrame(ordinary(events=300), schema=["user", "item", "timestamp"], orient="row")
    log = log.with_columns(kind=pl.Series(["view", "cart"] * (log.height // 2)))
    prepare_log(log, tmp_path, type_column="kind")
    settings = suggest_settings(inspect_dataset(open_dataset(tmp_path / "data")))
    text = "\n".join(settings)
    assert "--config.data.segment=25 --config.data.segments=11: a quarter" in text
    assert re.search(r"exact_entries=94: 9\d% of events", text) and "event_types=2" in text
    assert "use_times=false: gaps are alike" in text

    def once(rows):
        return [(u, f"{u}-{t}", t + 10 ** (n % 4)) for n, (u, _, t) in enumerate(rows)]

    (tmp_path / "short").mkdir()
    short = inspect_dataset(dataset_of(tmp_path / "short", once(ordinary(events=4))))
    text = "\n".join(suggest_settings(short))
    assert (
        "exact_entries=0: only 0%" in text
        and "--config.data.segment=1 --config.data.segments=1" in text
    )


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ([60, 86400], "use_times=true: gaps differ by a factor of 1,440"),
        ([0] * 30 + [86400], "use_times=true: 97% of gaps are zero"),
    ],
)
def test_times_that_tell_more_than_the_order_are_to_be_read(tmp_path, gaps, said):
    times = 1_500_000_000 + np.cumsum((gaps * 40)[:124])
    rows = [(user, number % 7, int(time)) for user in range(5) for number, time in enumerate(times)]
    settings = suggest_settings(inspect_dataset(dataset_of(tmp_path, rows)))
    assert any(said in line for line in settings), settings


def test_ranks_are_not_times(tmp_path):
    log = pl.DataFrame({"user_id": [1, 1, 1], "item_id": [3, 1, 2], "order": [1, 0, 2]})
    log.with_columns(timestamp="order").write_parquet(tmp_path / "ml.parquet")
    prepare(
        PrepareOptions(
            "movielens",
            str(tmp_path / "data"),
            input=str(tmp_path / "ml.parquet"),
            progress=False,
        )
    )
    found = inspect_dataset(open_dataset(tmp_path / "data"))
    assert any("no times, only an order" in text for text in find_problems(found))
    assert "\ngaps" not in format_report(found, "ranks")


def test_big_data_are_sampled_and_the_report_says_so(tmp_path):
    dataset = dataset_of(tmp_path, ordinary())
    found = inspect_dataset(dataset, max_events=1000)
    assert len(found.sample.ids) <= 1000 and len(found.lengths) == 120
    users = len(found.sample.users)
    assert f"below: a sample of {users} users" in format_report(found, "log")
    assert len(inspect_dataset(dataset, max_events=1).sample.users) == 1


def test_figures(tmp_path):
    pytest.importorskip("matplotlib")
    found = inspect_dataset(dataset_of(tmp_path, ordinary()))
    paths = draw_figures(found, "log", tmp_path / "figures")
    assert sorted(p.name for p in paths) == sorted(p.name for p in (tmp_path / "figures").iterdir())
    assert {p.stem for p in paths} == {"overview", *PANELS}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)


def test_figures_need_matplotlib(monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"rec2pm_jax\[demo\]"):
        plotting.pyplot()


@pytest.mark.slow
def test_the_command(tmp_path):
    dataset_of(tmp_path, ordinary())
    flags = [f"--data={tmp_path / 'data'}", f"--output={tmp_path / 'figures'}"]
    command = [sys.executable, "-m", "launch.inspect_data"]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing stands out" in done.stdout and (tmp_path / "figures/overview.png").is_file()
    done = subprocess.run([*command, "--data=nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere holds no prepared")
