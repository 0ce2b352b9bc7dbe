"""New events are read as the log was prepared: by the stream, in Python and by the exported example."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import json
import sys
import zoneinfo
from pathlib import Path

import numpy as np
import pytest

from rec2pm_jax.data.dataset import open_dataset
from rec2pm_jax.data.options import PrepareOptions
from rec2pm_jax.data.prepare import prepare
from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.export.directory import write_export
from rec2pm_jax.stream.lines.events import RejectedInput, parse_id, parse_time
from rec2pm_jax.stream.runner import run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.stream import ListSource, make_config, make_recommender

ROOT = Path(__file__).parents[2]
RULES = ValueRules("int", "Europe/Berlin", "%d.%m.%Y %H:%M")


@pytest.fixture(scope="module")
def log():
    """A log whose ids end in .0, and whose times are German ones."""
    rng, rows = np.random.default_rng(0), []
    zone = zoneinfo.ZoneInfo(RULES.zone)
    for user in range(6):
        for n in range(20):
            time = datetime.datetime.fromtimestamp(1_711_800_000 + 3600 * n, zone)  # in March
            rows.append((f"{user}.0", f"{rng.integers(1, 15)}.0", time.strftime(RULES.time_format)))
    return rows


@pytest.fixture(scope="module")
def model(log, tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    lines = ["user,item,timestamp", *(",".join(row) for row in log)]
    (directory / "log.csv").write_text("\n".join(lines) + "\n")
    options = {"id_type": RULES.id_type, "time_zone": RULES.zone, "time_format": RULES.time_format}
    data, input = str(directory / "data"), str(directory / "log.csv")
    prepare(PrepareOptions("interactions", data, input=input, progress=False, **options))
    dataset = open_dataset(data)
    config = make_config("rec2pm", "append", "hstu", "position_time")
    return dataclasses.replace(make_recommender(dataset, config), dataset=dataset)


def check_answer(found, expected):
    assert [item["item"] for item in found["items"]] == [item.item for item in expected]
    scores = [item["score"] for item in found["items"]]
    np.testing.assert_allclose(scores, [item.score for item in expected], atol=1e-4)


def test_a_streamed_log_is_the_prepared_one(log, model):
    lines = [{"user": user, "item": item, "time": time} for user, item, time in log]
    lines += [{"user": f"{user}.0", "recommend": 4, "exclude": ["3.0"]} for user in range(6)]
    engine, answers = Engine(model, MemoryStore()), []
    source = ListSource(json.dumps(line).encode() + b"\n" for line in lines)
    summary = run_stream(engine, source, answers.append)
    assert summary.events == len(log) and not summary.skipped
    for user, line in enumerate(map(json.loads, answers)):
        assert (line["user"], line["events"]) == (str(user), 20)
        check_answer(line, model.recommend(model.user(user), 4, exclude=[3]))


def test_python_reads_events_as_the_log_was_read(log, model):
    events = [{"item": item, "time": time} for user, item, time in log if user == "2.0"]
    user = model.observe(model.new_user(), events)
    time = "01.04.2024 12:00"
    expected = model.recommend(model.user("2.0"), 3, "4.0", parse_time(time, RULES))
    assert model.recommend(user, 3, exclude="4.0", time=time) == expected
    with pytest.raises(RejectedInput, match="like %d.%m.%Y %H:%M"):
        model.observe(user, {"item": "4.0", "time": "2024-04-01T12:00:00Z"})


@pytest.fixture(scope="module")
def example():
    """The module of the example that serves exported models."""
    path = ROOT / "examples" / "serve_exported.py"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("serve_exported", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.path.remove(str(path.parent))
    return module


def test_the_exported_example_follows_the_log(log, model, example, tmp_path):
    write_export(model, {"step": 1, "data_hash": "d"}, tmp_path / "out", 10)
    served, user = example.ExportedModel(tmp_path / "out"), example.User()
    for name, item, time in log:
        if name == "2.0":
            line = {"user": name, "item": item, "time": time}
            user.observe(served, example.parse_line(served, json.dumps(line)))
    line = example.parse_line(served, '{"user": "2.0", "recommend": 4, "exclude": ["3.0"]}')
    assert line["user"] == "2"
    check_answer(user.recommend(served, line), model.recommend(model.user(2), 4, exclude=[3]))


VALUES = [
    *("1717156800", "1717156800.75", " 1.7171568e9 ", "2024-05-31", "2024-05-31Z", "1e400"),
    *("2024-05-31 12:00", "2024-05-31T12:00:15,25", "2024-05-31 12:00:00 UTC", "20240531"),
    *(
        "2024-05-31 12:00:00+00",
        "2024-05-31T12:00:00-0330",
        "2024-05-31T12:00:00 +02:00",
        "2024-05-31T12:00+05:60",
    ),
    *(
        "2024-03-31 02:30",
        "31.03.2024 02:30",
        "31.05.2024 12:00",
        "31.5.2024",
        "2024-02-30",
        "noon",
    ),
    *(
        "20240531T120000",
        "2024-W22-5",
        "2024-05-31T12",
        "nan",
        "inf",
        "",
        "7.0",
        "7.50",
        "-7.0",
        "07.0",
    ),
    *(1717156800, 1717156800.75, 0, 100_000_000_000, 100_000_000_001, -1, 1e300, float("nan")),
    *(True, None, [1], {"a": 1}, 7.0, 7.5),
]


@pytest.mark.parametrize(
    "rules", [ValueRules(), RULES, ValueRules(zone="America/New_York")], ids=str
)
@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_the_exported_example_reads_values_as_the_stream(example, rules, value):
    served = object.__new__(example.ExportedModel)
    served.reading = rules._asdict()

    def outcome(read, *arguments):
        try:
            return read(*arguments)
        except (RejectedInput, example.Rejected):
            return "rejected"

    assert outcome(served.parse_time, value) == outcome(parse_time, value, rules)
    if value is not None:
        assert outcome(served.parse_id, value, "item") == outcome(parse_id, value, "item", rules)
