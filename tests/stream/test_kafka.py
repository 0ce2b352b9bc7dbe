"""A topic as input, from librdkafka's mock broker: restarts, lost messages, brokers that go away."""

from __future__ import annotations

import json
import random
import threading
import time

import pytest

pytest.importorskip("confluent_kafka", reason="needs pip install 'rec2pm_jax[kafka]'")

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream import driver
from rec2pm_jax.stream.engine import Engine
from rec2pm_jax.stream.lines.kafka.address import client_settings, parse_address
from rec2pm_jax.stream.lines.kafka.source import KafkaSource
from rec2pm_jax.stream.lines.output import open_output
from rec2pm_jax.stream.lines.sources import PartitionedSource, open_source
from rec2pm_jax.stream.options import EngineOptions, Worker
from rec2pm_jax.stream.runner import Intervals, run_stream
from rec2pm_jax.stream.stores.base import MemoryStore
from tests.helpers.kafka_broker import MockBroker
from tests.helpers.kafka_streams import (
    assert_same,
    at_end,
    clean_pass,
    make_messages,
    offsets,
    run_topic,
)
from tests.helpers.stores import Connection, Contents, contents
from tests.helpers.stream import make_config, make_data, make_recommender, raw_events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="module")
def model(dataset):
    return make_recommender(dataset, make_config())


@pytest.fixture(scope="module")
def broker():
    broker = MockBroker()
    yield broker
    broker.stop()


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.smoke
def test_any_restarts_of_a_topic(dataset, model, broker, tmp_path, monkeypatch):
    """Kill the stream between steps of the loop; requests are answered, and bad lines placed."""
    messages = make_messages(dataset, 6)
    user = messages[0][0]
    broker.create_topic("restarts", 3)
    broker.send("restarts", messages)
    address = f"kafka://{broker.address}/restarts"
    monkeypatch.setattr(driver, "BULK", driver.BULK._replace(lines=40, encoded=3))
    store, rng, answers, reached = MemoryStore(), random.Random(0), [], []
    for _ in range(5):
        connection, left = Connection(store), iter(range(rng.randrange(1, 5)))

        def killed(source, left=left):
            if offsets(source.positions(), "restarts") and next(left, None) is None:
                raise Killed
            return False

        with pytest.raises(Killed):
            run_topic(model, connection, address, stopped=killed, commit_s=0.0, in_order=True)
        connection.die()
        reached.append(sum(offsets(store.metadata(), "restarts").values()))
    assert reached == sorted(reached) and len(set(reached)) > 2
    assert 0 < reached[-1] <= len(messages)
    more = [(user, json.dumps({"user": user, "recommend": 3}).encode()), (user, b"bad")]
    more.append((user, b""))  # an empty line
    broker.send("restarts", more)
    clean = clean_pass(model, [*messages, *more], tmp_path / "events.jsonl")
    stopped = at_end(broker, "restarts")
    summary, _ = run_topic(model, store, address, stopped=stopped, write=answers.append)
    assert_same(model, contents(store), clean)
    assert json.loads(answers[-1])["user"] == user
    assert summary.skipped == {"malformed": 1}
    assert summary.examples["malformed"][0].startswith("partition ")
    again, _ = run_topic(model, store, address, stopped=stopped)
    assert again.events == again.answers == 0


def test_workers_divide_the_partitions(dataset, model, broker, tmp_path):
    messages = make_messages(dataset, 2)
    broker.create_topic("divided", 4)
    user = messages[0][0]
    broker.send("divided", [*messages, ("other", messages[-1][1]), (None, messages[-1][1])])
    ends, done = broker.ends("divided"), []
    stores = [MemoryStore(), MemoryStore()]
    for i, store in enumerate(stores):
        mine = {k: v for k, v in ends.items() if int(k[-1]) % 2 == i and v}

        def stopped(source, mine=mine):
            return offsets(source.positions(), "divided") == mine

        address = f"kafka://{broker.address}/divided"
        done.append(run_topic(model, store, address, worker=Worker(i, 2), stopped=stopped)[0])
    assert all(summary.events for summary in done)
    assert sum(summary.skipped["wrong key"] for summary in done) == 2
    examples = [e for summary in done for e in summary.examples.get("wrong key", ())]
    assert "several workers need messages keyed by user" in examples[0]
    assert_same(
        model,
        Contents(*(a | b for a, b in zip(*map(contents, stores), strict=True))),
        clean_pass(model, messages, tmp_path / "events.jsonl"),
    )
    assert not {u for u, _ in stores[0].items()} & {u for u, _ in stores[1].items()}
    source = KafkaSource(f"kafka://{broker.address}/divided", stores[0], Worker(4, 5))
    with pytest.raises(UserError, match="has 4 partitions, so --worker=4/5 has none"):
        source.read(1, 0)
    source.close()
    assert user in dict(stores[0].items()) | dict(stores[1].items())


def test_keys_are_ids_as_the_log_has_them(model, broker):
    broker.create_topic("keys", 1)
    broker.send("keys", [("7", b'{"user": 7.0}'), ("é", b"{}"), ("8", b"{}")])
    source = KafkaSource(f"kafka://{broker.address}/keys", MemoryStore(), Worker(0, 2))
    read_all(source, 3)
    rules = model.catalogue.rules
    source.check_user(0, "7", rules)
    source.check_user(1, "é", rules)
    with pytest.raises(UserError, match="the key b'8' is not the user '7'"):
        source.check_user(2, "7", rules)
    assert source.place(2) == "partition 0, offset 2"
    source.close()


def read_all(source, count, timeout_s=30.0):
    """Read until `count` lines have come in one call or several; keep the last call's whole."""
    end = time.monotonic() + timeout_s
    lines = []
    while len(lines) < count:
        assert time.monotonic() < end
        lines += source.read(count, 0.1)
    return lines


def test_lost_messages_are_an_error_or_skipped_on_request(dataset, model, broker, capsys):
    """Whatever was read before the gap is committed first."""
    broker.create_topic("lost", 2)
    messages = make_messages(dataset, 4)
    broker.send("lost", messages)
    address, store = f"kafka://{broker.address}/lost", MemoryStore()
    first = KafkaSource(address, store, Worker())
    read_all(first, 100)
    store.put({}, first.positions())
    first.close()
    read = offsets(store.metadata(), "lost")
    partition = max(range(2), key=lambda p: read.get(f"kafka:lost/{p}", 0))
    at = read[f"kafka:lost/{partition}"]
    broker.delete_before("lost", partition, at + 5)
    engine, source = Engine(model, store), KafkaSource(address, store, Worker())
    message = (
        f"partition {partition} of topic lost begins at offset {at + 5} .* has read it up to {at}"
    )
    with pytest.raises(UserError, match=message):
        run_stream(engine, source, print, intervals=Intervals(60.0))
    source.close()
    after = offsets(store.metadata(), "lost")
    assert after[f"kafka:lost/{partition}"] == at  # nothing behind the gap was read
    summary, _ = run_topic(model, store, f"{address}?lost=skip", stopped=at_end(broker, "lost"))
    assert "5 messages are lost" in capsys.readouterr().err
    assert summary.events + summary.skipped.total() > 0


def test_a_topic_made_anew_is_refused(broker):
    """By its id, or by its end where the broker has no ids."""
    broker.create_topic("anew", 1)
    broker.send("anew", [("a", b"{}")] * 5)
    address, store = f"kafka://{broker.address}/anew", MemoryStore()
    position = {"offset": 3, "topic_id": "another", "partitions": 1}
    store.put({}, {"kafka:anew/0": json.dumps(position).encode()})
    source = KafkaSource(address, store, Worker())
    with pytest.raises(UserError, match="was deleted and made anew .* offset 3 of partition 0"):
        source.read(1, 0)
    source.close()
    position |= {"offset": 9, "topic_id": ""}
    store.put({}, {"kafka:anew/0": json.dumps(position).encode()})
    source = KafkaSource(address, store, Worker())
    with pytest.raises(UserError, match="ends at 5, .* up to 9: the broker has lost messages"):
        read_all(source, 1)
    source.close()


def test_more_partitions_are_refused_where_workers_share_them(broker):
    broker.create_topic("grown", 2)
    broker.send("grown", [("a", b"{}")])
    address, store = f"kafka://{broker.address}/grown", MemoryStore()
    for p in range(2):
        position = {"offset": 0, "topic_id": "", "partitions": 1}
        store.put({}, {f"kafka:grown/{p}": json.dumps(position).encode()})
    source = KafkaSource(address, store, Worker(0, 2))
    with pytest.raises(UserError, match="has 2 partitions, and the store was filled from 1"):
        source.read(1, 0)
    source.close()
    alone = KafkaSource(address, store, Worker())
    assert read_all(alone, 1) == [b"{}"]
    alone.close()


def test_a_broker_that_goes_away_is_waited_for(dataset, model, capsys, tmp_path):
    broker = MockBroker()
    broker.create_topic("away", 2)
    messages = make_messages(dataset, 4)
    broker.send("away", messages[:50])
    over = threading.Event()

    def nemesis():
        while not over.wait(1.0):
            broker.go_down()
            time.sleep(0.5)
            broker.come_back()

    store, address = MemoryStore(), f"kafka://{broker.address}/away"
    source = KafkaSource(address, store, Worker())
    read_all(source, 50)
    broker.go_down()
    end = time.monotonic() + 20
    while "waiting for a broker" not in capsys.readouterr().err:
        assert source.read(10, 0.1) == [] and time.monotonic() < end
    assert source.read(10, 0.5) == [] and capsys.readouterr().err == ""  # one line
    broker.come_back()
    broker.send("away", messages[50:])
    assert read_all(source, 10)
    assert "is back" in capsys.readouterr().err
    source.close()
    thread = threading.Thread(target=nemesis)
    thread.start()
    try:
        run_topic(model, store, address, stopped=at_end(broker, "away"))
    finally:
        over.set()
        thread.join()
        broker.stop()
    assert_same(model, contents(store), clean_pass(model, messages, tmp_path / "events.jsonl"))


def test_no_broker_and_no_topic(broker):
    with pytest.raises(UserError, match="no broker has answered for 0.3 s .*correct the address"):
        KafkaSource("kafka://127.0.0.1:1/topic", MemoryStore(), Worker(), patience_s=0.3)
    with pytest.raises(UserError, match="the broker has no topic nothing: create it"):
        open_source(f"kafka://{broker.address}/nothing", MemoryStore())
    with pytest.raises(UserError, match="leave \\?group=.. out"):
        open_source(f"kafka://{broker.address}/restarts?group=g", MemoryStore())


def test_addresses(tmp_path):
    found = parse_address("kafka://a:1,[::1]:2/t.x?group=g&lost=skip&config=f")
    assert found[1:] == ("a:1,[::1]:2", "t.x", "g", "f", True)
    for text, message in {
        "kafka:///t": "'' is no list of HOST:PORT",
        "kafka://a/t": "'a' is no list of HOST:PORT",
        "kafka://user@a:1/t": "no list of HOST:PORT",
        "kafka://a:1": "'' is no name of a topic",
        "kafka://a:1/t/u": "'t/u' is no name of a topic",
        "kafka://a:1/t?grp=x": "no field 'grp'. Did you mean \"group\"",
        "kafka://a:1/t?group=": "group has no value",
        "kafka://a:1/t?group": "is malformed",
        "kafka://a:1/t?lost=ignore": "lost=ignore is unknown",
    }.items():
        with pytest.raises(UserError, match=message.replace("?", "\\?")):
            parse_address(text)
    path = tmp_path / "client.properties"
    address = parse_address(f"kafka://a:1/t?config={path}")
    with pytest.raises(UserError, match="client.properties cannot be read"):
        client_settings(address, "0")
    path.write_text("# ours\nsecurity.protocol = SASL_SSL\n\n")
    assert client_settings(address, "0")["security.protocol"] == "SASL_SSL"
    path.write_text("a=b\nnothing\n")
    with pytest.raises(UserError, match="line 2: 'nothing' is not NAME=VALUE"):
        client_settings(address, "0")
    path.write_text("group.id=x\n")
    with pytest.raises(UserError, match="line 1: group.id is set by --events"):
        client_settings(address, "0")
    path.write_text("no.such=x\n")
    with pytest.raises(UserError, match='No such configuration property: "no.such"'):
        open_source(address.text, MemoryStore())


def test_answers_are_appended_to_a_file_that_exists(tmp_path):
    path = tmp_path / "answers"
    for _ in range(2):
        with open_output(str(path), "kafka://a:1/t", append=True) as write:
            write("{}")
    assert path.read_text() == "{}\n{}\n"


def test_hand_over_commits_and_releases_all_users(dataset, model):
    """As when partitions move to another worker."""

    class Moving:
        """Gives one batch of lines, and hands over before the next."""

        done = False

        def __init__(self, store, lines):
            self.store, self.lines, self.seen = store, lines, []

        def on_hand_over(self, hand_over):
            self.hand_over = hand_over

        def check_user(self, index, user, rules):
            pass

        def place(self, index):
            return str(index)

        def read(self, max_lines, timeout_s):
            if not self.lines:
                self.hand_over()
                self.seen.append(contents(self.store).records)
                self.done = True
            lines, self.lines = self.lines, []
            return lines

        def positions(self):
            return {"kafka:t/0": b"5"}

        def notes(self):
            return []

        def close(self):
            pass

    store = MemoryStore()
    engine = Engine(model, store, EngineOptions())
    lines = [json.dumps({"user": "u"} | e).encode() for e in raw_events(dataset, 0)]
    source = Moving(store, lines)
    assert isinstance(source, PartitionedSource)
    run_stream(engine, source, print, intervals=Intervals(1e6))
    user = engine.record_format.decode("u", source.seen[0]["u"])
    assert user is not None and user.events == len(lines)
    assert store.metadata()["kafka:t/0"] == b"5"
    assert engine.gauges().cached_users == 0
