"""Lines in, answers out: what is answered, skipped, counted and reported."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import driver, runner
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines import output, requests
from rec2pm_jax.stream.lines.events import Event, RejectedInput
from rec2pm_jax.stream.lines.output import open_output
from rec2pm_jax.stream.lines.requests import Request, parse_line
from rec2pm_jax.stream.stores.base import MemoryStore
from rec2pm_jax.stream.stores.lmdb_store import LmdbStore
from tests.helpers.stream import (
    ListSource,
    make_config,
    make_data,
    make_recommender,
    raw_events,
    save_run,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("lines"))


@pytest.fixture
def engine(dataset):
    return Engine(make_recommender(dataset, make_config()), MemoryStore())


def encode(lines):
    return [x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines]


def stream(engine, lines, **options):
    answers = []
    summary = runner.run_stream(engine, ListSource(encode(lines)), answers.append, **options)
    return [json.loads(line) for line in answers], summary


@pytest.mark.smoke
def test_parse_line():
    assert parse_line(b'{"user": 7, "item": "a", "time": 5.0}') == Event("7", "a", 5, None)
    assert parse_line(b'{"user": 17850.0, "item": 3.0}') == Event("17850", "3")
    for time in (b'"2024-05-31T12:00:00Z"', b'"2024-05-31 12:00:00+00"', b"1717156800.25"):
        assert parse_line(b'{"user": 1, "item": 3, "time": %s}' % time).time == 1717156800
    assert parse_line(b'{"user": "7", "item": 3, "type": "buy", "more": []}') == Event(
        "7", "3", None, "buy"
    )
    assert parse_line(b'{"user": 7, "item": 3, "type": 1}').type == "1"
    assert parse_line(b'{"user": "u", "recommend": 4, "exclude": [1, "b"], "time": 9}') == Request(
        "u", 4, ("1", "b"), 9
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"item": "a"}', '"user" is missing'),
        (b'{"user": "u"}', 'needs either "item" or "recommend"'),
        (b'{"user": "u", "item": "a", "recommend": 3}', 'needs either "item" or "recommend"'),
        (b'{"user": null, "item": "a"}', '"user" must hold'),
        (b'{"user": "", "item": "a"}', '"user" must hold'),
        (b'{"user": "u", "item": 1.5}', '"item" must hold'),
        (b'{"user": "u", "item": true}', '"item" must hold'),
        (b'{"user": "u", "item": "a", "time": "now"}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": "2024-02-30"}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": NaN}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": Infinity}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": true}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": 1e300}', '"time" must be seconds'),
        (b'{"user": "u", "item": "a", "time": 1600000000000}', "is it in another unit"),
        (b'{"user": -7, "item": "a"}', "a negative id"),
        (b'{"user": ["7"], "item": "a"}', '"user" must hold'),
        (b'{"user": "u", "item": "a", "type": 1.5}', '"type" must hold'),
        (b'{"user": "u", "recommend": "3"}', '"recommend" must be a whole number'),
        (b'{"user": "u", "recommend": true}', '"recommend" must be a whole number'),
        (b'{"user": "u", "recommend": 3, "exclude": "a"}', '"exclude" must be a list'),
        (b'{"user": "u", "recommend": 3, "exclude": [null]}', '"exclude" must hold'),
    ],
)
def test_malformed_lines_name_the_error(line, message):
    with pytest.raises(RejectedInput, match=message) as error:
        parse_line(line)
    assert error.value.reason == "malformed"


def test_answers_come_in_order_with_everything_before_applied(dataset, engine):
    events = {f"u{i}": raw_events(dataset, i) for i in (0, 1)}
    lines = [{"user": "u0", "recommend": 3}]
    for step in range(20):
        for user in ("u0", "u1"):
            lines.append({"user": user} | events[user][step])
        lines.append({"user": "u1", "recommend": 2, "exclude": [events["u1"][step]["item"]]})
    answers, summary = stream(engine, lines)
    assert answers[0]["user"] == "u0" and answers[0]["events"] == answers[0]["updates"] == 0
    assert answers[0]["popular"] and [i["score"] for i in answers[0]["items"]] == [None] * 3
    assert not any("popular" in answer for answer in answers[1:]) and summary.popular == 1
    assert "answered 1 requests of users without events" in "\n".join(summary.format_report())
    assert [a["events"] for a in answers] == list(range(21))
    model = engine.recommender
    for step, answer in enumerate(answers[1:]):
        user = model.observe(model.new_user(), events["u1"][: step + 1])
        expected = model.recommend(user, 2, exclude=[events["u1"][step]["item"]])
        assert [tuple(i.values())[:2] for i in answer["items"]] == [r[:2] for r in expected]
        scores = [i["score"] for i in answer["items"]]
        assert scores == pytest.approx([r.score for r in expected], abs=1e-5)
        assert answer["updates"] == model.count_updates(user)
    assert (summary.events, summary.answers, summary.skipped.total()) == (40, 21, 0)
    assert summary.updates == 2 * model.count_updates(user)
    assert len(summary.read_ms) == 21


VALUES = st.one_of(
    st.sampled_from(["", "a", "7", "7.0", "7.50", "ü", "2024-05-31", 0, -1, 7.0, 7.5, True, None]),
    st.sampled_from(
        [2**63 - 1, 2**63, 10**11, 10**11 + 1, 10**30, float("nan"), [], {"a": 1}, [3]]
    ),
    st.integers(0, 100),
    st.text("a7.ü\n\x00😀", max_size=3),
)
FIELDS = ("user", "item", "time", "type", "seq", "recommend", "more")


@given(
    st.dictionaries(st.sampled_from(FIELDS), VALUES),
    st.sampled_from(["text", "int"]),
    st.sampled_from([b"", b" \r\n", b"{}", b"\xff"]),
)
def test_the_usual_way_through_a_line_is_the_long_one(fields, id_type, end):
    def outcome(parse):
        try:
            return parse(json.dumps(fields).encode() + end, ValueRules(id_type))
        except RejectedInput as error:
            return str(error)

    short = outcome(requests._parse_usual)
    if short is not None:
        assert repr(short) == repr(outcome(requests._parse_any))


def test_the_size_of_steps_changes_nothing(dataset, engine, monkeypatch):
    lines = [{"user": i % 3} | e for i, e in enumerate(raw_events(dataset, 0))]
    one, _ = stream(engine, [*lines, {"user": "1", "recommend": 5}])
    monkeypatch.setattr(driver, "BULK", driver.BULK._replace(lines=4))
    counts = []
    apply = Engine.apply
    monkeypatch.setattr(Engine, "apply", lambda s, e: counts.append(len(e)) or apply(s, e))
    again = Engine(engine.recommender, MemoryStore())
    two, summary = stream(again, [*lines, {"user": "1", "recommend": 5}], in_order=True)
    assert max(counts) == 4 and sum(counts) == len(lines) == summary.events
    assert [i["item"] for i in one[0]["items"]] == [i["item"] for i in two[0]["items"]]


def test_skipped_lines_are_counted_and_leave_no_trace(dataset, engine):
    good = [{"user": "u"} | e for e in raw_events(dataset, 0, 12)]
    lines = [
        *good[:5],
        b"garbage\n",
        {"user": "u", "item": "i1", "time": good[3]["time"] - 1},
        *good[5:11],
        b"\n",
        {"user": "u", "item": "i1", "time": good[10]["time"] - 1},
        {"user": "u", "item": "i1", "time": good[10]["time"] - 2},
        good[11],
        {"user": "u", "recommend": 31},
        {"user": "u", "recommend": 5, "exclude": ["no such item", "i1"]},
    ]
    [answer], summary = stream(engine, lines)
    [clean], _ = stream(
        Engine(engine.recommender, MemoryStore()),
        [*good, {"user": "u", "recommend": 5, "exclude": ["i1"]}],
    )
    assert answer == clean and answer["events"] == 12
    assert summary.skipped == {"malformed": 2, "out of order": 3}
    report = "\n".join(summary.format_report())
    assert "skipped 5 lines: 3 out of order, 2 malformed" in report
    assert "line 6: not JSON" in report
    assert "line 18: k=31" in report
    assert f"line 7: time {good[3]['time'] - 1} lies before {good[4]['time']}" in report
    assert f"line 16: time {good[10]['time'] - 2} lies before {good[10]['time']}" in report
    assert "ignored 1 unknown items in exclude lists" in report
    assert "done: 12 events" in report


def test_events_of_unknown_items_are_kept_and_counted(dataset, engine):
    """They are events in the history, segments are counted with them, and no item is made up."""
    good = [{"user": "u"} | e for e in raw_events(dataset, 0, 11)]
    unknown = [e | {"item": f"new {n}"} if n % 3 == 2 else e for n, e in enumerate(good)]
    ask = {"user": "u", "recommend": 30}
    [answer], summary = stream(engine, [*unknown, ask])
    [clean], _ = stream(Engine(engine.recommender, MemoryStore()), [*good, ask])
    assert (summary.events, summary.unknown_items, summary.skipped.total()) == (11, 3, 0)
    assert "kept 3 events of unknown items" in "\n".join(summary.format_report())
    assert (answer["events"], answer["updates"]) == (clean["events"], clean["updates"])
    assert answer != clean
    assert {i["item"] for i in answer["items"]} == set(engine.recommender.known_items)
    pending = engine.get_user("u").pending.ids
    assert pending.tolist().count(0) == sum(n % 3 == 2 for n in range(11 - len(pending), 11))


def test_only_the_first_malformed_lines_are_quoted(engine):
    _, summary = stream(engine, [b"?\n"] * 50)
    assert summary.skipped["malformed"] == 50
    quoted = [line.split(":")[0].strip() for line in summary.format_report()[1:-1]]
    assert quoted == ["line 1", "line 2", "line 3"]


def test_equal_times_keep_the_order_of_arrival_and_missing_times_pass(engine):
    items = ["i4", "i2", "i9", "i2", "i1"]
    times = [5, 5, None, 5, 6]
    _, summary = stream(
        engine, [{"user": "u", "item": i, "time": t} for i, t in zip(items, times, strict=True)]
    )
    assert summary.events == 5
    ids = [engine.recommender.catalogue.items.id_of(i) for i in items]
    assert engine.get_user("u").pending.ids.tolist() == ids


def test_order_is_kept_per_user(engine):
    lines = [{"user": "a", "item": "i1", "time": 9}, {"user": "b", "item": "i1", "time": 3}]
    _, summary = stream(engine, lines)
    assert (summary.events, summary.skipped.total()) == (2, 0)
    _, summary = stream(engine, [{"user": "a", "item": "i1", "time": 8}])  # a later call remembers
    assert summary.skipped == {"out of order": 1}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_and_the_first_error(monkeypatch):
    with pytest.raises(
        UserError, match=r"^Cannot write --output=/dev/full: no room left on its disk"
    ):
        with open_output("/dev/full", "-") as write:
            write("{}")

    class Bad(io.FileIO):
        def close(self):
            super().close()
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(output, "open", lambda path, mode, buffering: Bad(path, "w"), raising=False)
    with pytest.raises(UserError, match="no room left"):
        with open_output("/dev/null", "-"):
            pass
    with pytest.raises(UserError, match="the first error"):
        with open_output("/dev/null", "-"):
            raise UserError("the first error")


def run_cli(workdir, events, output, stdin=None, more=()):
    flags = [f"--workdir={workdir}", f"--events={events}", f"--output={output}", *more]
    return subprocess.run(
        [sys.executable, "-m", "launch.stream", *flags],
        input=stdin,
        capture_output=True,
        check=False,
    )


def assert_one_error(done, message):
    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert [line for line in errors if line.startswith("error: ") and message in line], errors
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.slow
def test_command_line(dataset, engine, tmp_path):
    workdir, events, output = tmp_path / "run", tmp_path / "events.jsonl", tmp_path / "out.jsonl"
    save_run(workdir, dataset, make_config())
    lines = [{"user": "u"} | e for e in raw_events(dataset, 0, 30)]
    lines += [{"user": "u", "recommend": 4}, b"?\n", {"user": "new", "recommend": 2}]
    text = b"".join(encode(lines))
    events.write_bytes(text)
    output.write_text("of an earlier run\n")
    done = run_cli(workdir, events, output)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    expected, _ = stream(engine, lines)
    assert [a["user"] for a in answers] == ["u", "new"]
    assert [[i["item"] for i in a["items"]] for a in answers] == [
        [i["item"] for i in a["items"]] for a in expected
    ]
    summary = done.stderr.decode()
    assert "skipped 1 lines: 1 malformed" in summary and "done: 30 events" in summary
    assert done.stdout == b""

    assert "--data=DIR lets its users start" in summary
    known = run_cli(
        workdir, "-", "-", json.dumps({"user": dataset.user(0), "recommend": 2}).encode(),
        more=[f"--data={dataset.path}"],
    )  # fmt: skip
    assert json.loads(known.stdout)["events"] == dataset.lengths[0], known.stderr

    piped = run_cli(workdir, "-", "-", text)
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == output.read_bytes()

    assert_one_error(run_cli(workdir, tmp_path / "none", "-"), "none cannot be read")
    assert_one_error(run_cli(tmp_path / "none", events, "-"), "holds no checkpoint")
    assert_one_error(run_cli(workdir, events, tmp_path / "a" / "b"), "Cannot write --output=")
    assert_one_error(run_cli(workdir, events, events), "is the file of events")
    assert events.read_bytes() == text


@pytest.mark.slow
def test_each_answer_is_flushed_before_the_next_line_is_read(dataset, tmp_path):
    save_run(tmp_path, dataset, make_config())
    flags = [f"--workdir={tmp_path}", "--events=-", "--output=-"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.stream", *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    for n in (1, 2, 3):
        process.stdin.writelines(
            encode([{"user": "u", "item": f"i{n}"}, {"user": "u", "recommend": 1}])
        )
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["events"] == n  # blocks if held back
    process.stdin.close()
    assert process.wait(timeout=60) == 0


@pytest.mark.slow
def test_command_line_with_a_store(dataset, engine, tmp_path):
    """The same file twice, then with more lines; another model, two writers, bad flags."""
    workdir, events, output = tmp_path / "run", tmp_path / "events.jsonl", tmp_path / "out.jsonl"
    save_run(workdir, dataset, make_config())
    history = raw_events(dataset, 0, 30)
    ask = {"user": "u", "recommend": 4}
    first = [*({"user": "u"} | e for e in history[:17]), ask]
    second = [*({"user": "u"} | e for e in history[17:]), ask]
    more = ["--store=" + str(tmp_path / "store"), f"--metrics={tmp_path / 'metrics.jsonl'}"]
    events.write_bytes(b"".join(encode(first)))
    done = run_cli(workdir, events, output, more=more)
    assert done.returncode == 0 and b"done: 17 events" in done.stderr, done.stderr
    done = run_cli(workdir, events, output, more=more)
    assert b"done: 0 events" in done.stderr, done.stderr
    events.write_bytes(b"".join(encode(first + second)))
    with contextlib.closing(LmdbStore(tmp_path / "store")):
        assert_one_error(run_cli(workdir, events, output, more=more), "in use by another process")
    done = run_cli(workdir, events, output, more=more)
    assert b"done: 13 events" in done.stderr, done.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    expected, _ = stream(engine, first + second)
    assert [[i["item"] for i in a["items"]] for a in answers] == [
        [i["item"] for i in a["items"]] for a in expected
    ]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["events"] == 13 and rows[-1]["commits"] >= 1 and rows[-1]["queue"] == 0
    assert rows[-1]["latency_ms"].keys() == {"p50", "p95", "p99"}

    done = run_cli(workdir, events, output, more=[*more, "--memory=int8"])
    assert_one_error(done, "states of memory 'float32', not 'int8'")
    done = run_cli(workdir, events, output, more=[*more, "--worker=0/2"])
    assert_one_error(done, "several workers need a store that they share")
    done = run_cli(workdir, tmp_path, output, more=["--store=" + str(tmp_path / "other")])
    assert_one_error(done, "lies in the directory of events")
    for run, file in ((tmp_path / "none", events), (workdir, tmp_path / "none")):
        assert run_cli(run, file, output, more=["--store=" + str(tmp_path / "new")]).returncode == 1
        assert not (tmp_path / "new").exists()
    done = run_cli(workdir, events, output, more=["--worker=2/2"])
    assert_one_error(done, "must be I/N with 0 <= I < N")
