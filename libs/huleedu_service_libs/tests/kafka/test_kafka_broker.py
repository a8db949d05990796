"""The mock cluster does what tests tell it to."""

import asyncio
import os
import select
import sys
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import InvalidTopicError, KafkaConnectionError

from huleedu_service_libs.testing.kafka_broker import KafkaBroker, KafkaBrokerError, KafkaRequest
from huleedu_service_libs.testing.kafka_records import produce, record_reader

HOLD = """
import asyncio
from huleedu_service_libs.testing.kafka_broker import KafkaBroker

async def hold():
    async with KafkaBroker() as broker:
        print(broker.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(hold())
"""


async def test_go_away_and_come_back() -> None:
    """A Kafka that was away has the same address and all its records."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        await produce(broker.bootstrap_servers, "orders", b"1")
        await broker.go_away()
        with pytest.raises(KafkaConnectionError):
            await produce(broker.bootstrap_servers, "orders", b"2")
        await broker.come_back()
        await produce(broker.bootstrap_servers, "orders", b"3")
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            assert [(await reader.next()).value for _ in range(2)] == [b"1", b"3"]


async def test_hang_and_resume() -> None:
    """A Kafka that hangs answers everything once it goes on."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        broker.hang()
        producing = asyncio.create_task(produce(broker.bootstrap_servers, "orders", b"1"))
        done, _ = await asyncio.wait({producing}, timeout=0.3)
        assert not done
        broker.resume()
        await producing


async def test_end_while_it_hangs() -> None:
    """A cluster that hangs at the end of the test is gone as well."""
    async with KafkaBroker() as broker:
        descriptor = os.pidfd_open(broker.pid)
        broker.hang()
    try:
        assert select.select([descriptor], [], [], 0)[0] == [descriptor]
    finally:
        os.close(descriptor)


async def test_fail() -> None:
    """A request fails as often as it was told to."""
    async with (
        KafkaBroker() as broker,
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers) as producer,
    ):
        await broker.create_topic("orders")
        await producer.send_and_wait("orders", b"0")
        await broker.fail(KafkaRequest.PRODUCE, InvalidTopicError.errno, times=2)
        for _ in range(2):
            with pytest.raises(InvalidTopicError):
                await producer.send_and_wait("orders", b"1")
        await producer.send_and_wait("orders", b"2")


async def test_records_as_they_are() -> None:
    """Key, headers, partition and a missing value come out as they went in."""
    async with KafkaBroker(brokers=3) as broker:
        await broker.create_topic("orders", partitions=3)
        await produce(
            broker.bootstrap_servers,
            "orders",
            None,
            key=b"\xff",
            headers=[("h", b"1"), ("h", b"\x00")],
            partition=2,
        )
        async with record_reader(broker.bootstrap_servers, "orders") as reader:
            record = await reader.next()
    assert (record.partition, record.key, record.value) == (2, b"\xff", None)
    assert record.headers == (("h", b"1"), ("h", b"\x00"))


async def test_refused_command() -> None:
    """What the cluster refuses is an error that says why."""
    async with KafkaBroker() as broker:
        await broker.create_topic("orders")
        with pytest.raises(KafkaBrokerError, match="TOPIC_ALREADY_EXISTS"):
            await broker.create_topic("orders")


async def test_killed_parent() -> None:
    """A cluster does not outlive a parent that was killed."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    descriptor = os.pidfd_open(int(await parent.stdout.readline()))
    try:
        parent.kill()
        await parent.wait()
        # Readable once the process has ended.
        assert select.select([descriptor], [], [], 20)[0] == [descriptor]
    finally:
        os.close(descriptor)


@pytest.fixture
def no_librdkafka(tmp_path: Path) -> Path:
    """Where a confluent-kafka is found first that brings none."""
    installed = tmp_path / "confluent_kafka-0.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Name: confluent-kafka\n", encoding="utf-8")
    return tmp_path


async def test_what_to_install_is_said_in_one_line(no_librdkafka: Path) -> None:
    """Without a librdkafka the command that runs the mock cluster names what has one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "huleedu_service_libs.testing.kafka_mock_cluster", "1"),
        env={**os.environ, "PYTHONPATH": str(no_librdkafka)},
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    assert process.returncode == 1
    [line] = said.decode().splitlines()
    assert line.startswith("Error: ")
    assert ".pins/dev.txt" in line


async def test_a_test_is_told_what_to_install(
    no_librdkafka: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a librdkafka a test that wants a broker fails with the same words."""
    monkeypatch.syspath_prepend(no_librdkafka)
    with pytest.raises(KafkaBrokerError, match=r"install \.pins/dev\.txt"):
        async with KafkaBroker():
            pass
