"""The address of a topic, and the settings of the client that reads it.

kafka://HOST:PORT[,HOST:PORT..]/TOPIC[?group=NAME][&config=FILE][&lost=skip]
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from rec2pm_jax.errors import UserError, nearest

_FORM = "kafka://HOST:PORT/TOPIC?group=NAME&config=FILE&lost=skip, all after ? optional"
_FIELDS = ("group", "config", "lost")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
# What the store, and not the broker, keeps or decides.
_OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "partition.assignment.strategy": "range,roundrobin",
    "enable.partition.eof": False,
}
# A static member of a group that is started again within this time gets its partitions back at once.
_SESSION_MS = 30_000
_RECONNECT_MS = 2_000
# Apache Kafka answers a fetch when a message arrives. Some compatible brokers let it wait in full.
_FETCH_WAIT_MS = 50


class KafkaAddress(NamedTuple):
    """What `--events=kafka://..` says.

    Attributes:
      text: the whole address.
      brokers: HOST:PORT, separated by commas.
      topic: its name.
      group: the consumer group that divides the partitions; "" where `--worker` divides them.
      config: file of further settings of the client; "" for none.
      skip_lost: continue after events that the broker has deleted before they were read.
    """

    text: str
    brokers: str
    topic: str
    group: str = ""
    config: str = ""
    skip_lost: bool = False


def parse_address(text: str) -> KafkaAddress:
    """Parse the address of a topic.

    Raises:
      UserError: it is malformed; the message names the part.

    Example:
      >>> parse_address("kafka://a:9092,b:9092/events?group=shop")[1:4]
      ('a:9092,b:9092', 'events', 'shop')
    """
    parts = urlsplit(text)
    brokers, topic = parts.netloc, parts.path.removeprefix("/")
    if not brokers or not all(
        re.fullmatch(r"[^:@]+:\d+|\[.+\]:\d+", b) for b in brokers.split(",")
    ):
        raise UserError(f"--events={text}: {brokers!r} is no list of HOST:PORT; write {_FORM}.")
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise UserError(f"--events={text}: {topic!r} is no name of a topic; write {_FORM}.")
    try:
        given = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise UserError(f"--events={text}: {parts.query!r} is malformed; write {_FORM}.") from error
    fields = dict(given)
    for name, value in given:
        if name not in _FIELDS:
            raise UserError(
                f"--events={text} has no field {name!r}.{nearest(name, _FIELDS)} Write {_FORM}."
            )
        if not value:
            raise UserError(f"--events={text}: {name} has no value.")
    if fields.get("lost", "skip") != "skip":
        raise UserError(f"--events={text}: lost={fields['lost']} is unknown; write lost=skip.")
    return KafkaAddress(
        text, brokers, topic, fields.get("group", ""), fields.get("config", ""), "lost" in fields
    )


def client_settings(address: KafkaAddress, member: str) -> dict[str, Any]:
    """Return the settings of a librdkafka consumer.

    A setting without a value in the file removes one of those that are made here.

    Args:
      member: name of this process in the group.

    Raises:
      UserError: the file of settings cannot be read, or sets what must not be set.
    """
    settings: dict[str, Any] = {
        "client.id": "rec2pm",
        "log_level": 0,  # what matters comes as an error; the rest would fill stderr
        "session.timeout.ms": _SESSION_MS,
        "reconnect.backoff.max.ms": _RECONNECT_MS,
        "fetch.wait.max.ms": _FETCH_WAIT_MS,
        "group.instance.id": f"{address.group}-{member}",
    }
    settings |= _read_settings(address.config) if address.config else {}
    settings = {name: value for name, value in settings.items() if value != ""}
    settings |= {"bootstrap.servers": address.brokers, "group.id": address.group or "rec2pm"}
    return settings | _OURS


def _read_settings(path: str) -> dict[str, str]:
    """Read lines NAME=VALUE, as in the property files of Kafka's tools."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--events=..&config={path} cannot be read ({reason}).") from error
    settings = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not equals or not name:
            raise UserError(f"{path}, line {number}: {line!r} is not NAME=VALUE.")
        if name in _OURS or name in ("bootstrap.servers", "group.id"):
            raise UserError(f"{path}, line {number}: {name} is set by --events; remove the line.")
        settings[name] = value
    return settings
