"""librdkafka's mock cluster as a process: `KafkaBroker` starts it, and talks to it in lines.

Standard input takes one JSON array per line, `[command, argument, …]`, and standard output answers
each with one JSON value: null, or a text that says what went wrong. The first line of all is the
cluster's address. The process ends when standard input does.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Final

PRODUCER: Final = 0
ERROR_TEXT_BYTES: Final = 512
ERRORS_ONLY: Final = b"3"  # syslog's level
# Not what a test waits for: the first member of a group need not be joined by others.
GROUP_REBALANCE_DELAY_MS: Final = 0


class LibrdkafkaNotFoundError(Exception):
    """There is no librdkafka to run; the message says what to install."""


def bundled_librdkafka() -> Path:
    """The shared library in the confluent-kafka wheel.

    Raises LibrdkafkaNotFoundError where the package is not installed, or was built against a
    library of the system.
    """
    with suppress(PackageNotFoundError):
        for file in files("confluent-kafka") or ():
            if file.name.startswith("librdkafka") and {".so", ".dylib"} & {*file.suffixes}:
                return Path(str(file.locate()))
    raise LibrdkafkaNotFoundError(
        "a Kafka for tests needs the wheel of confluent-kafka: install .pins/dev.txt"
    )


class MockCluster:
    """The functions of rdkafka_mock.h that tests need.

    https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_mock.h
    """

    def __init__(self, brokers: int) -> None:
        self._brokers = brokers
        self._library = ctypes.CDLL(str(bundled_librdkafka()))
        error = ctypes.create_string_buffer(ERROR_TEXT_BYTES)
        new_conf = self._function("rd_kafka_conf_new", (), ctypes.c_void_p)
        set_conf = self._function(
            "rd_kafka_conf_set",
            (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
            ctypes.c_int,
        )
        new_client = self._function(
            "rd_kafka_new",
            (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
            ctypes.c_void_p,
        )
        new_cluster = self._function(
            "rd_kafka_mock_cluster_new", (ctypes.c_void_p, ctypes.c_int), ctypes.c_void_p
        )
        # The cluster lives in the threads of a client, which itself has nothing to do. It would
        # warn that it knows no servers.
        conf = new_conf()
        set_conf(conf, b"log_level", ERRORS_ONLY, error, ERROR_TEXT_BYTES)
        client = new_client(PRODUCER, conf, error, ERROR_TEXT_BYTES)
        if client is None:
            raise RuntimeError(error.value.decode())
        self._cluster = new_cluster(client, brokers)
        self._on_cluster(
            "rd_kafka_mock_group_initial_rebalance_delay_ms",
            (ctypes.c_int32, GROUP_REBALANCE_DELAY_MS),
            result=None,
        )

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:<port>,…`, a port for each broker."""
        address = self._on_cluster("rd_kafka_mock_cluster_bootstraps", result=ctypes.c_char_p)
        return str(address, "ascii")

    def create_topic(self, name: str, partitions: int) -> None:
        self._check(
            "rd_kafka_mock_topic_create",
            (ctypes.c_char_p, name.encode()),
            (ctypes.c_int, partitions),
            (ctypes.c_int, self._brokers),
        )

    def go_away(self) -> None:
        self._of_each_broker("rd_kafka_mock_broker_set_down")

    def come_back(self) -> None:
        self._of_each_broker("rd_kafka_mock_broker_set_up")

    def delay(self, round_trip_ms: int) -> None:
        self._of_each_broker("rd_kafka_mock_broker_set_rtt", (ctypes.c_int, round_trip_ms))

    def fail(self, api_key: int, error_code: int, times: int) -> None:
        codes = (ctypes.c_int * times)(*[error_code] * times)
        self._on_cluster(
            "rd_kafka_mock_push_request_errors_array",
            (ctypes.c_int16, api_key),
            (ctypes.c_size_t, times),
            (ctypes.POINTER(ctypes.c_int), codes),
            result=None,
        )

    def _of_each_broker(self, name: str, *arguments: tuple[type, object]) -> None:
        for broker in range(1, self._brokers + 1):
            self._check(name, (ctypes.c_int32, broker), *arguments)

    def _check(self, name: str, *arguments: tuple[type, object]) -> None:
        code = self._on_cluster(name, *arguments, result=ctypes.c_int)
        if code:
            error_name = self._function("rd_kafka_err2name", (ctypes.c_int,), ctypes.c_char_p)
            raise RuntimeError(f"{name}: {error_name(code).decode()}")

    def _on_cluster(self, name: str, *arguments: tuple[type, object], result: type | None) -> Any:
        types = (ctypes.c_void_p, *(kind for kind, _ in arguments))
        return self._function(name, types, result)(
            self._cluster, *(value for _, value in arguments)
        )

    def _function(
        self, name: str, types: Iterable[type], result: type | None
    ) -> Callable[..., Any]:
        function = self._library[name]
        function.argtypes = tuple(types)
        function.restype = result
        return function


def main() -> None:
    """Serve commands until standard input ends."""
    try:
        cluster = MockCluster(brokers=int(sys.argv[1]))
    except LibrdkafkaNotFoundError as error:
        sys.exit(f"Error: {error}")
    commands: dict[str, Callable[..., None]] = {
        "create_topic": cluster.create_topic,
        "go_away": cluster.go_away,
        "come_back": cluster.come_back,
        "delay": cluster.delay,
        "fail": cluster.fail,
    }
    _say(cluster.bootstrap_servers)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            commands[name](*arguments)
        except RuntimeError as error:
            _say(str(error))
        else:
            _say(None)


def _say(answer: str | None) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
