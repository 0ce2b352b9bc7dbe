"""The client of one topic: waits for brokers, and tells errors that pass from those that last."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from rec2pm_jax.errors import UserError
from rec2pm_jax.stream.lines.kafka.address import KafkaAddress, client_settings

try:
    import confluent_kafka
    from confluent_kafka import KafkaError, KafkaException, TopicPartition
    from confluent_kafka.admin import AdminClient
except ImportError as error:
    raise UserError(
        "--events=kafka://.. needs the package confluent-kafka: pip install 'rec2pm_jax[kafka]'"
    ) from error

_T = TypeVar("_T")
FIRST = -1  # stands for the first offset that the broker has
_REQUEST_S = 5.0
_NO_ID = ("", "AAAAAAAAAAAAAAAAAAAAAA")  # of brokers that give topics no ids
# Errors that waiting does not mend. A broker that starts may not know a topic for some seconds, so
# these count as such only in an answer to a request for the topic.
_NO_TOPIC = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC)
_LASTING = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._AUTHENTICATION,
    KafkaError._FATAL,
)


class TopicClient:
    """A consumer of one topic.

    Attributes:
      consumer: the client of the library.
      topic: name of the topic.
      is_away: whether all brokers have gone away, and nothing was read since.
    """

    def __init__(self, address: KafkaAddress, member: str):
        """Connect in the background.

        Args:
          member: name of this process in the group.

        Raises:
          UserError: a setting is wrong.
        """
        self._address, self.topic, self.is_away = address, address.topic, False
        self._settings = client_settings(address, member)
        self._error: UserError | None = None  # which the library reported meanwhile
        try:
            self.consumer: Any = confluent_kafka.Consumer(
                self._settings | {"error_cb": self._note_error}
            )
        except KafkaException as error:
            raise self.refusal(error.args[0].str()) from error

    def refusal(self, reason: str) -> UserError:
        """Return an error that names the topic."""
        return UserError(f"--events={self._address.text}: {reason}.")

    # --- requests ---

    def wait_for_topic(self, patience_s: float) -> int:
        """Return the number of partitions once a broker tells it.

        Args:
          patience_s: seconds to wait.

        Raises:
          UserError: no broker has answered, or there is no such topic.
        """
        end = time.monotonic() + patience_s
        while True:
            try:
                return self.count_partitions(min(_REQUEST_S, patience_s))
            except KafkaException as error:
                if time.monotonic() > end:
                    raise self.refusal(
                        f"no broker has answered for {patience_s:g} s ({error.args[0].str()}): start "
                        "it, or correct the address"
                    ) from error
                self._report_away()

    def count_partitions(self, timeout_s: float) -> int:
        """Return the number of partitions.

        Raises:
          UserError: there is no such topic.
          KafkaException: no broker answers in time.
        """
        found = self.consumer.list_topics(self.topic, timeout=timeout_s).topics[self.topic]
        if found.error is not None and found.error.code() in _NO_TOPIC:
            raise self.refusal(f"the broker has no topic {self.topic}: create it")
        if found.error is not None and (error := self.lasting_error(found.error)):
            raise error
        if found.error is not None or not found.partitions:
            raise KafkaException(found.error or KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
        self.report_back()
        return len(found.partitions)

    def topic_id(self) -> str:
        """Return the id that the topic got when it was made; "" where brokers give none."""
        admin = AdminClient(self._settings)
        wanted = confluent_kafka.TopicCollection([self.topic])
        try:
            found = admin.describe_topics(wanted, request_timeout=_REQUEST_S)
            text = str(found[self.topic].result().topic_id)
        except KafkaException:
            return ""
        return "" if text in _NO_ID else text

    def watermarks(self, partition: int) -> tuple[int, int]:
        """Return the first offset of a partition, and the one behind its last message."""
        where = TopicPartition(self.topic, partition)
        return self._retry(lambda: self.consumer.get_watermark_offsets(where, timeout=_REQUEST_S))

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Read partitions from these offsets on; `FIRST` is allowed."""
        begin = confluent_kafka.OFFSET_BEGINNING
        self.consumer.assign(
            [
                TopicPartition(self.topic, partition, begin if offset == FIRST else offset)
                for partition, offset in offsets.items()
            ]
        )

    def read(self, max_messages: int, timeout_s: float) -> list[Any]:
        """Return messages, among them errors; wait up to `timeout_s` seconds for the first."""
        # `consume` waits until it has all it was asked for.
        first = self.consumer.poll(timeout_s)
        if first is None or max_messages == 1:
            return [] if first is None else [first]
        return [first, *self.consumer.consume(max_messages - 1, 0)]

    def _retry(self, call: Callable[[], _T]) -> _T:
        while True:
            try:
                return call()
            except KafkaException:
                self._report_away()

    # --- errors ---

    def take_error(self) -> UserError | None:
        """Return the first lasting error that the library has reported since the last call."""
        error, self._error = self._error, None
        return error

    def lasting_error(self, error: Any) -> UserError | None:
        """Return what to raise for an error of the library, or None if it may pass."""
        if error.fatal() or error.code() in _LASTING:
            return self.refusal(error.str().removesuffix("."))
        return None

    def _note_error(self, error: Any) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._report_away()
        elif self._error is None:
            self._error = self.lasting_error(error)

    def _report_away(self) -> None:
        if not self.is_away:
            self.is_away = True
            print(f"waiting for a broker of {self._address.text}", file=sys.stderr, flush=True)

    def report_back(self) -> None:
        """Note that a broker has answered."""
        if self.is_away:
            self.is_away = False
            print(f"a broker of {self._address.text} is back", file=sys.stderr, flush=True)


def is_out_of_range(error: Any) -> bool:
    """Return whether an error says that a broker does not have the wanted offset."""
    return error.code() == KafkaError._AUTO_OFFSET_RESET


__all__ = ["FIRST", "KafkaException", "TopicClient", "is_out_of_range"]
