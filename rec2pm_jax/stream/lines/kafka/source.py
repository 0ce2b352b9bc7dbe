"""Lines from a Kafka topic, each message one line.

The place behind the last message of each partition is metadata of the store, written in the same
transaction as the users. Nothing is committed to the broker. So an event counts once, whatever
process, broker or connection ends in between.

Workers divide the partitions: either worker I of N takes every N-th one, or a consumer group assigns
them. A worker that gets a partition first becomes its owner in the store (`Store.own_inputs`). Before
a partition goes to another worker, everything read is committed and all users are released.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rec2pm_jax.data.reading.values import ValueRules
from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.lines.events import RejectedInput, parse_id
from rec2pm_jax.stream.lines.kafka.address import parse_address
from rec2pm_jax.stream.lines.kafka.client import (
    FIRST,
    KafkaException,
    TopicClient,
    is_out_of_range,
)
from rec2pm_jax.stream.options import Worker
from rec2pm_jax.stream.stores.base import Store

WRONG_KEY = "wrong key"  # reason of a RejectedInput
_PATIENCE_S = 60.0  # for a broker at the start
_CHECK_S = 60.0  # between two looks at the number of partitions


class KafkaSource:
    """Messages of the partitions of one worker, see `sources.PartitionedSource`.

    A broker that goes away is waited for.

    Attributes:
      num_partitions: of the topic.
    """

    def __init__(self, text: str, store: Store, worker: Worker, *, patience_s: float = _PATIENCE_S):
        """Find the topic.

        Args:
          text: address, see `kafka.address`.
          store: with the positions of what was read before.
          worker: which of the processes that share the store this is.
          patience_s: seconds to wait for a broker.

        Raises:
          UserError: the address or a setting is wrong, no broker answers, or there is no such topic.
        """
        self.done = False
        self._address, self._store, self._worker = parse_address(text), store, worker
        self._shared = bool(self._address.group) or worker.count > 1
        if self._address.group and not store.is_shared:
            raise UserError(
                f"--events={text}: partitions of a group move between workers, which need a store "
                "that they share, --store=redis://..; leave ?group=.. out to read all partitions."
            )
        self._client = TopicClient(self._address, worker.name.replace("/", "-of-"))
        self._started = False
        self._failure: UserError | None = None  # raised once what came before it is committed
        self._hand_over: Callable[[], None] = lambda: None
        self._next: dict[int, int] = {}  # offset behind the last line, of each partition held
        self._last: list[Any] = []  # messages of the last `read`
        try:
            self.num_partitions = self._client.wait_for_topic(patience_s)
            self._topic_id = self._client.topic_id()
        except UserError:
            self._client.consumer.close()
            raise
        self._checked_at = time.monotonic()

    # --- partitions ---

    def on_hand_over(self, hand_over: Callable[[], None]) -> None:
        self._hand_over = hand_over

    def _start(self) -> None:
        """Take every N-th partition, or join the group."""
        self._started = True
        worker = self._worker
        if self._address.group:
            join = functools.partial(self._guard, self._take)
            leave = functools.partial(self._guard, lambda _: self._give_up())
            self._client.consumer.subscribe(
                [self._address.topic], on_assign=join, on_revoke=leave, on_lost=leave
            )
            return
        mine = range(worker.index, self.num_partitions, worker.count)
        if not mine:
            raise self._client.refusal(
                f"the topic has {self.num_partitions} partitions, so --worker={worker.name} has none: "
                "start fewer workers, or give the topic more partitions"
            )
        self._take(mine)

    def _guard(self, act: Callable[[list[int]], None], _: Any, partitions: list[Any]) -> None:
        """Run what the library calls; what fails there is raised by `read`."""
        try:
            act([partition.partition for partition in partitions])
        except UserError as error:
            self._failure = error
            self._next = {}  # nothing that still arrives is applied

    def _take(self, partitions: Sequence[int]) -> None:
        """Become the owner of partitions, and read on where the store is."""
        names = {p: self._entry(p) for p in partitions}
        known = self._store.own_inputs(list(names.values()))
        self._next = {p: self._stored_offset(p, known.get(name)) for p, name in names.items()}
        self._client.assign(self._next)

    def _give_up(self) -> None:
        """Commit all that was read, and hold no partitions any more."""
        if self._failure is None:
            self._hand_over()
        self._store.release_inputs([self._entry(p) for p in self._next])
        self._next = {}

    def _entry(self, partition: int) -> str:
        return f"kafka:{self._address.topic}/{partition}"

    def _stored_offset(self, partition: int, position: bytes | None) -> int:
        if position is None:
            return FIRST
        known = json.loads(position)
        ids = (known["topic_id"], self._topic_id)
        if all(ids) and ids[0] != ids[1]:
            raise self._client.refusal(
                "the topic was deleted and made anew since the store has read it up to offset "
                f"{known['offset']} of partition {partition}: give the new topic another name"
            )
        if self._shared and known["partitions"] != self.num_partitions:
            raise self._client.refusal(
                f"the topic has {self.num_partitions} partitions, and the store was filled from "
                f"{known['partitions']}. Users may have moved to partitions of other workers: make a "
                "topic with more partitions under another name"
            )
        return known["offset"]

    def positions(self) -> Mapping[str, bytes]:
        about = {"topic_id": self._topic_id, "partitions": self.num_partitions}
        return {
            self._entry(p): json.dumps({"offset": offset} | about).encode()
            for p, offset in self._next.items()
            if offset != FIRST
        }

    # --- messages ---

    def read(self, max_lines: int, timeout_s: float) -> list[bytes]:
        self._raise_failure()
        if not self._started:
            self._start()
        messages = self._client.read(max_lines, timeout_s)
        self._last = [message for message in messages if self._accept(message)]
        if self._last:
            self._client.report_back()
        else:
            self._failure = self._failure or self._client.take_error()
            self._raise_failure()
            self._check_partitions()
        return [message.value() or b"\n" for message in self._last]  # no value: an empty line

    def _accept(self, message: Any) -> bool:
        """Return whether a message is the next line of its partition, and move behind it."""
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is not None:
            if is_out_of_range(error) and partition in self._next:
                self._handle_lost(partition)
            elif self._failure is None:
                self._failure = self._client.lasting_error(error)
            return False
        if self._failure is not None or offset < self._next.get(partition, sys.maxsize):
            return False  # of a partition that went to another worker, or read before
        self._next[partition] = offset + 1
        return True

    def check_user(self, index: int, user: str, rules: ValueRules) -> None:
        if not self._shared:
            return
        key = self._last[index].key()
        if key is not None and key == user.encode():
            return
        try:
            if key is not None and parse_id(key.decode(), "key", rules) == user:
                return
        except (RejectedInput, UnicodeDecodeError):
            pass
        raise RejectedInput(
            WRONG_KEY,
            f"the key {key!r} is not the user {user!r}: several workers need messages keyed by user",
        )

    def place(self, index: int) -> str:
        message = self._last[index]
        return f"partition {message.partition()}, offset {message.offset()}"

    def notes(self) -> list[str]:
        return []

    def close(self) -> None:
        self._hand_over = lambda: None  # the stream has committed
        self._client.consumer.close()

    # --- errors ---

    def _raise_failure(self) -> None:
        """Raise what went wrong, once everything before it is committed."""
        if self._failure is not None:
            if self._next:
                self._hand_over()
            raise self._failure

    def _handle_lost(self, partition: int) -> None:
        """Fail, or continue behind the gap, where the broker has no next message of a partition."""
        at, (low, high) = self._next[partition], self._client.watermarks(partition)
        if at != FIRST and not low <= at <= high:
            what = (
                f"partition {partition} of topic {self._address.topic} begins at offset {low} and "
            )
            what += f"ends at {high}, and the store has read it up to {at}"
            if at > high:
                self._fail(f"{what}: the broker has lost messages, or the topic was made anew")
                return
            if not self._address.skip_lost:
                self._fail(
                    f"{what}: the messages in between were deleted before they were read (retention). "
                    "Rebuild the store, or add lost=skip to the address to continue without them"
                )
                return
            print(f"warning: {what}: {low - at} messages are lost", file=sys.stderr, flush=True)
            self._next[partition] = low
        self._client.assign(self._next)

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or self._client.refusal(reason)

    def _check_partitions(self) -> None:
        """Fail if the topic has got more partitions; look once a minute."""
        if self._client.is_away or time.monotonic() - self._checked_at < _CHECK_S:
            return
        self._checked_at = time.monotonic()
        try:
            count = self._client.count_partitions(1.0)
        except KafkaException:
            return
        except UserError as error:
            self._failure = error
            return
        if count != self.num_partitions:
            self._fail(
                f"the topic has {count} partitions now, not {self.num_partitions}: start again"
            )
